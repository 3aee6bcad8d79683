"""Checkpoints in a bucket: the requests that they make, and one that is damaged there."""

import jax
import jax.numpy as jnp
import numpy as np

from colajax.chaos.bucket_server import BUCKET, Requests
from colajax.files import files_under
from colajax.train.aside import set_damaged_aside
from colajax.train.checkpoint import Checkpoints, latest_step
from colajax.train.state import TrainState


def state_at(step: int) -> TrainState:
    return TrainState(jnp.int32(step), {"w": jnp.full((4, 4), step)}, {}, {})


def like() -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(0))


def test_requests_of_a_save_and_of_a_start(server, capsys):
    """They do not grow with the step, and hardly with the checkpoints that are kept."""
    saves, starts = {}, {}
    for step in range(1, 13):
        checkpoints = Checkpoints(BUCKET / "counted", keep_every=1)
        with Requests(server) as saving:
            checkpoints.save(state_at(step), {})
            checkpoints.close()
        saves[step] = saving.count
        with Requests(server) as starting:
            set_damaged_aside(BUCKET / "counted")
            assert latest_step(BUCKET / "counted") == step
            again = Checkpoints(BUCKET / "counted", keep_every=1)
            again.restore(step, like())
        again.close()
        starts[step] = starting.count
    with capsys.disabled():
        print(f"\nrequests of a save, by step: {saves}\nrequests of a start, by checkpoints kept: {starts}")
    assert max(saves.values()) <= 140
    early, late = (sum(saves[step] for step in range(first, first + 5)) / 5 for first in (2, 8))
    assert abs(late - early) <= 8  # one save differs from the next by up to as many
    assert starts[1] <= 90
    assert starts[12] - starts[1] <= 3 * 11


def test_a_damaged_checkpoint_is_set_aside_in_a_bucket(server, capsys):
    checkpoints = Checkpoints(BUCKET / "flipped", keep_every=1)
    for step in (1, 2):
        checkpoints.save(state_at(step), {})
    checkpoints.close()
    newest = BUCKET / "flipped" / "checkpoints" / "2"
    names = {str(file.relative_to(newest)) for file in files_under(newest)}
    data = next(file for file in files_under(newest / "state" / "d"))
    content = bytearray(data.read_bytes())
    content[-20] ^= 1
    data.write_bytes(content)
    set_damaged_aside(BUCKET / "flipped")
    said = f"{newest}: damaged ({data.relative_to(newest)} is not what was written); moved to gs://bucket/flipped/damaged/2-0"
    assert said in capsys.readouterr().err
    aside = BUCKET / "flipped" / "damaged" / "2-0"
    assert {str(file.relative_to(aside)) for file in files_under(aside)} == names
    assert latest_step(BUCKET / "flipped") == 1
    again = Checkpoints(BUCKET / "flipped", keep_every=1)
    np.testing.assert_array_equal(again.restore(1, like()).params["w"], 1)
    again.save(state_at(2), {})
    again.close()
    set_damaged_aside(BUCKET / "flipped")
    assert latest_step(BUCKET / "flipped") == 2
