"""Randomness as a function of (seed, purpose, step, sample index), and of nothing else.

Every sample of a batch gets a key of its own (for what is drawn once a batch, all get one and the same), so that no
split of the batch over devices, hosts or accumulation steps changes what is drawn.
"""

import enum
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from colajax.errors import UserError

SEEDS = 2**31 - 1  # as many as there are; JAX takes a seed modulo 2**32, by which -1 would be the same as 2**32 - 1


class Purpose(enum.IntEnum):
    """What a key is for. The numbers are part of what makes a run repeatable: never change one, only add."""

    INIT = 0
    POSTERIOR = 1
    MASK = 2
    MASKED_POSTERIOR = 3
    NOISE = 4
    TIME = 5
    PROMPT = 6
    GENERATION_NOISE = 7
    GENERATION_TOKENS = 8
    EVALUATION = 9
    LENGTH = 10


OF_THE_BATCH = (Purpose.LENGTH,)  # all samples of an update have the key of its first

Draw = Callable[[Purpose], jax.Array]  # from a purpose to one key a sample, (B,)


def check_seed(name: str, seed: int) -> None:
    """Raises UserError, naming the key or flag, on a seed that is none of SEEDS."""
    if not 0 <= seed < SEEDS:
        raise UserError(f"{name} is {seed}: expected 0 to {SEEDS - 1}")


def sample_keys(seed: int, purpose: Purpose, step, indices) -> jax.Array:
    """One key a sample, (B,), from sample indices (B,); for generation `step` is the block."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), int(purpose)), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(indices))


def training_draw(seed: int, step, indices) -> Draw:
    """The keys of the update from `step` to step + 1, for these places (B,) in its batch."""
    first = jnp.zeros_like(jnp.asarray(indices))
    return lambda purpose: sample_keys(seed, purpose, step, first if purpose in OF_THE_BATCH else indices)


def evaluation_draw(rows) -> Draw:
    """The keys of held-out rows (B,), by their place in the split: a row meets the same noise in every evaluation of
    every run, whatever the batch it is in, and never that of an update."""
    root = jax.random.fold_in(jax.random.key(0), int(Purpose.EVALUATION))

    def keys(purpose: Purpose) -> jax.Array:
        fold = functools.partial(jax.random.fold_in, jax.random.fold_in(root, int(purpose)))
        return jax.vmap(fold)(jnp.asarray(rows))

    return keys


def normals(keys, shape) -> jax.Array:
    """Standard normals (B, *shape), float32."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def uniforms(keys, shape) -> jax.Array:
    """Uniform numbers in [0, 1), (B, *shape), float32."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
