"""Everything a run needs to go on, as one tree of arrays, and where on the mesh each of them lies."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from colajax.keys import Purpose
from colajax.parallel.rules import parameter_shardings, replicated, shardings_of, with_shardings
from colajax.train.optimizer import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` is the number of updates applied so far; the random numbers of the next update depend on it alone."""

    step: jax.Array  # int32 scalar
    params: dict  # {group: tree}, float32
    opt_state: dict  # {group: optax state}
    frozen: dict  # what the loss reads and nothing changes


@jax.jit
def is_finite(state: TrainState) -> jax.Array:
    """Whether every number of the parameters and the optimizer is one: a bool scalar, the same in every process."""
    floats = [x for x in jax.tree.leaves((state.params, state.opt_state)) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def _begin(stage, optimizer: Optimizer, params: dict, loaded: dict | None) -> TrainState:
    params, frozen = stage.begin(params, loaded)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), frozen)


def state_shapes(stage, optimizer: Optimizer) -> TrainState:
    """The state as ShapeDtypeStructs: nothing is allocated."""
    return jax.eval_shape(lambda params: _begin(stage, optimizer, params, None), stage.shapes())


def abstract_state(stage, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs with their shardings. Optimizer slots lie where their parameters lie. Raises
    UserError on a large parameter that the mesh cannot divide."""
    shapes, names = state_shapes(stage, optimizer), stage.axes()
    whole = replicated(mesh)
    params = parameter_shardings(mesh, names, shapes.params)
    frozen_names = {name: stage.frozen_axes()[name] for name in shapes.frozen}
    opt_state = {
        group: optax.tree_map_params(
            optimizer.transforms[group], lambda _, like: like, slots, params[group],
            transform_non_params=lambda _: whole,
        )
        for group, slots in shapes.opt_state.items()
    }  # fmt: skip
    shardings = TrainState(whole, params, opt_state, parameter_shardings(mesh, frozen_names, shapes.frozen))
    return with_shardings(shapes, shardings)


def fresh_state(stage, optimizer: Optimizer, like: TrainState, *, seed: int, loaded: dict | None = None) -> TrainState:
    """The state before the first update, laid out as `like`; loaded: the parameters of the run it begins with."""
    key = jax.random.fold_in(jax.random.key(seed), int(Purpose.INIT))
    make = jax.jit(lambda loaded: _begin(stage, optimizer, stage.init(key), loaded), out_shardings=shardings_of(like))
    return make(loaded)
