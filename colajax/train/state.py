"""Everything a run needs to go on, as one tree of arrays."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` is the number of updates applied so far; the random numbers of the next update depend on it alone."""

    step: jax.Array  # int32 scalar
    params: dict  # {group: tree}, float32
    opt_state: dict  # {group: optax state}
    frozen: dict  # what the loss reads and nothing changes
