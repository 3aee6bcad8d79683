"""What a plan says that a state takes, against the arrays of one."""

import jax
import pytest
from tiny_runs import tiny_config

from colajax.parallel.mesh import ONE_DEVICE, make_mesh
from colajax.planning.memory import state_bytes, whole_bytes
from colajax.stages import STAGES
from colajax.train.optimizer import optimizer_of
from colajax.train.state import abstract_state, fresh_state


@pytest.mark.parametrize("name", ["vae", "joint", "llada"])
def test_bytes_of_the_state_against_arrays(name):
    config = tiny_config(name)
    mesh = make_mesh(ONE_DEVICE, jax.devices()[:1])
    stage = STAGES[name](config, 0, 1)
    optimizer = optimizer_of(config, stage)
    like = abstract_state(stage, optimizer, mesh)
    state = fresh_state(stage, optimizer, like, seed=0)
    held = {"parameters": state.params, "optimizer": state.opt_state, "frozen": state.frozen}
    expected = {kind: sum(a.nbytes for a in jax.tree.leaves(tree)) for kind, tree in held.items()}
    assert state_bytes(like) == expected
    assert whole_bytes(like) == sum(expected.values()) + state.step.nbytes
