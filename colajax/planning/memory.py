"""Bytes of one device: of the state exactly, from shapes and shardings; of activations by what autodiff keeps."""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from colajax.keys import training_draw
from colajax.parallel.batch import batch_shares
from colajax.parallel.mesh import ONE_DEVICE
from colajax.train.config import changed
from colajax.train.state import TrainState
from colajax.train.step import loss_and_means


def _shard_bytes(tree) -> int:
    """Of a tree of ShapeDtypeStructs with shardings, on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def state_bytes(state: TrainState) -> dict[str, int]:
    """{"parameters", "optimizer", "frozen"} on one device; state: see `train.state.abstract_state`."""
    return {
        "parameters": _shard_bytes(state.params),
        "optimizer": _shard_bytes(state.opt_state),
        "frozen": _shard_bytes(state.frozen),
    }


def whole_bytes(state: TrainState) -> int:
    """Of a checkpoint."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def activation_bytes(config, make_stage: Callable, state: TrainState, mesh: Mapping[str, int]) -> int:
    """An estimate: what autodiff keeps of a device's rows between the forward and the backward pass, and gradients.

    What is kept is exact for the program as it is written, with its remat policy; the compiler can do with less (it
    fuses some of it away) or more (temporaries of the largest layer), and the tensor axis is taken to divide none of
    it."""
    # What a row costs does not hang on the batch that it is measured in.
    batch_size = 8 * make_stage(config, 0, 0).rows_together
    alone = changed(config, accumulation_steps=1, mesh=ONE_DEVICE, batch_size=batch_size)
    rows = config.batch_size / (batch_shares(mesh) * config.accumulation_steps)
    gradients = _shard_bytes(state.params) * (1 if config.accumulation_steps == 1 else 2)
    return math.ceil(rows) * _kept_per_row(FrozenConfigDict(alone), make_stage) + gradients


@functools.cache
def _kept_per_row(config: FrozenConfigDict, make_stage: Callable) -> int:
    """Bytes of residuals that a batch has more for every row more."""
    stage = make_stage(config, 0, 0)
    trainable = stage.trainable(0)

    def residuals(params, frozen, tokens):
        examples = stage.examples(tokens, training_draw(0, 0, jnp.arange(tokens.shape[0])))
        counts = stage.counts(examples)

        def loss_of(trained):
            return loss_and_means(stage, {**params, **trained}, frozen, examples, counts, trainable)

        return jax.vjp(loss_of, {group: params[group] for group in trainable}, has_aux=True)[1]

    def kept(rows: int) -> int:
        tokens = jax.ShapeDtypeStruct((rows, config.sequence_length), jnp.int32)
        found = jax.eval_shape(residuals, *stage_shapes, tokens)
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(found))

    stage_shapes = jax.eval_shape(lambda params: stage.begin(params, None), stage.shapes())
    return (kept(2 * config.batch_size) - kept(config.batch_size)) // config.batch_size
