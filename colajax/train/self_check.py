"""A check before every run on several devices: the mesh computes what one device computes, sample by sample.

XLA's partitioner has been seen to exchange samples (colajax/axes.py), and neither the loss nor its gradients need show
it. So before the first update the stage's terms and their derivatives are computed on the run's mesh and on one device
of each process, with the run's widths, lengths, rows, precision and rematerialisation, and compared. Only the number of
layers is smaller than the run's, so that one device can hold the model; and its parameters are random, for at their
start many do nothing.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from colajax.axes import by_sample
from colajax.errors import UserError
from colajax.keys import training_draw
from colajax.models.layers import UNROLLED_LAYERS
from colajax.parallel.batch import global_batch, local_rows
from colajax.parallel.compiler_options import compiler_options
from colajax.parallel.rules import laid_out, replicated, sharding, shardings_of
from colajax.train.optimizer import optimizer_of
from colajax.train.state import abstract_state
from colajax.train.step import rounded_kernels

# The largest relative difference that rounding may make; samples in each other's place make one near 1.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
SUM_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}
KINDS = 4  # groups of rows that differ, of which a batch is made
LAYERS = (
    ("vae", "encoder_num_blocks"), ("vae", "decoder_num_blocks"), ("dit", "num_layers"), ("llama", "num_hidden_layers"),
)  # fmt: skip


def check_layout(config, make_stage: Callable, pad_id: int, eos_id: int, mesh: Mesh) -> None:
    """Raises UserError unless the terms and derivatives of a training step on `mesh` are those of one device.

    Every process of a run calls this alike, before its own arrays are there. Compared are, in this order, of every term
    of the loss its sum and its derivative by the noise of each sample, for a batch in several orders; then the gradient
    of every parameter.
    """
    if mesh.size == 1:
        return
    config = _of_few_layers(config)
    stage = make_stage(config, pad_id, eos_id)
    for trainable in sorted({stage.trainable(step) for step in range(min(stage.period, config.total_steps))}):
        found = agreed(_differences(config, stage, mesh, trainable))
        for name, difference, tolerance in found:
            if not difference <= tolerance:
                sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
                raise UserError(
                    f"config.mesh ({sizes}): {name} differs from one device's by {difference:.2g} of its size, "
                    f"expected at most {tolerance}: the compiler does not keep samples apart there; choose another mesh"
                )


def agreed(differences: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """(name, difference, tolerance), the difference the largest of all processes, so that they all decide alike."""
    names, values, tolerances = zip(*differences, strict=True)
    largest = np.reshape(multihost_utils.process_allgather(np.array(values, np.float32)), (-1, len(values))).max(0)
    return list(zip(names, largest.tolist(), tolerances, strict=True))


def drawn(shapes):
    """Numpy parameters for a tree of shapes, the same in every process: no layer is at its start, where many do
    nothing, and every kernel mixes its inputs."""
    pool = np.random.default_rng(0).standard_normal(1_000_003).astype(np.float32)  # a prime: no two rows are alike
    offsets = iter(np.random.default_rng(1).integers(0, pool.size, len(jax.tree.leaves(shapes))))

    def draw(path, leaf):
        name = path[-1].key
        scale = leaf.shape[-2] ** -0.5 if name == "kernel" else 1.0 if name == "embedding" else 0.2
        values = np.resize(np.roll(pool, next(offsets)), leaf.shape)
        return values * np.float32(scale) + np.float32(name == "scale")

    return jax.tree_util.tree_map_with_path(draw, shapes)


def orders(places: int, kinds: int) -> Iterator[np.ndarray]:
    """Which of the kinds lies in each place, (places,) ints: as often as it takes for any two places to differ once."""
    step = 1
    while step < places or step == 1:
        yield np.arange(places) // step % kinds
        step *= max(kinds, 2)


def row_difference(found: jax.Array, expected: np.ndarray) -> float:
    """The largest relative difference of a row, of those that this process holds of (B, F) over the mesh."""
    floor = 0.1 * np.sqrt(np.mean(expected**2)) + 1e-30
    worst = 0.0
    for shard in found.addressable_shards:
        theirs = expected[shard.index]
        error = np.sqrt(np.mean((np.asarray(shard.data) - theirs) ** 2, axis=1))
        worst = np.maximum(worst, np.max(error / np.maximum(np.sqrt(np.mean(theirs**2, axis=1)), floor)))
    return float(worst)


def _of_few_layers(config) -> ConfigDict:
    """The configuration with as few layers as compile like the run's: in a loop, or one by one."""
    few = ConfigDict(config)
    with few.unlocked():
        for model, key in LAYERS:
            if model in few:
                looped = config.remat == "none" and few[model][key] > UNROLLED_LAYERS
                few[model][key] = min(few[model][key], UNROLLED_LAYERS + 1 if looped else 2)
        if "compute_params" in few:
            few.compute_params = 0  # it is that of the whole model
    return few


def _differences(config, stage, mesh: Mesh, trainable: tuple[str, ...]) -> list[tuple[str, float, float]]:
    """(name, relative difference, tolerance) of everything that is compared."""
    rows, unit = config.batch_size // config.accumulation_steps, stage.rows_together
    places = rows // unit
    kinds = min(KINDS, places)
    alone = mesh.local_devices[0]
    like = abstract_state(stage, optimizer_of(config, stage), mesh)

    parameters = drawn((like.params, like.frozen))
    over_mesh = jax.tree.map(
        lambda leaf, whole: jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: whole[index]),
        (like.params, like.frozen), parameters,
    )  # fmt: skip
    by_row = sharding(mesh, ("batch", None), (rows, 2))
    make = (stage, trainable, config.gradient_reduction)
    on_mesh = jax.jit(
        _derivatives(*make, mesh), compiler_options=compiler_options(alone.device_kind),
        out_shardings=({g: shardings_of(like.params[g]) for g in trainable}, by_row, replicated(mesh)),
    )  # fmt: skip
    with jax.default_device(alone):
        parameters_alone, on_one = jax.device_put(parameters, alone), jax.jit(_derivatives(*make))
        tokens = _text(kinds * unit, config.sequence_length, stage)
        draw = training_draw(config.seed, 0, np.arange(len(tokens)))
        examples = jax.tree.map(np.asarray, jax.jit(lambda t: stage.examples(t, draw))(tokens))
        parts = [jax.tree.map(lambda a, k=k: a[k * unit : (k + 1) * unit], examples) for k in range(kinds)]

    differences, names = [], [name for name, weight in stage.weights.items() if weight]
    tolerance, sum_tolerance = TOLERANCE[config.compute_dtype], SUM_TOLERANCE[config.compute_dtype]
    for name in names:
        weights = {other: np.float32(other == name) for other in names}
        with jax.default_device(alone):
            theirs = [jax.device_get(on_one(*parameters_alone, part, weights)[1:]) for part in parts]
        if name not in theirs[0][1]:
            continue  # of a group that is left alone
        for order in orders(places, kinds):
            _, noise, terms = on_mesh(*over_mesh, _batch(mesh, examples, order, unit), weights)
            total = sum(theirs[kind][1][name] for kind in order)
            error = abs(float(terms[name]) - total) / max(abs(total), 1e-30)
            differences.append((f"the sum of term {name!r}", error, sum_tolerance))
            expected = np.concatenate([theirs[kind][0] for kind in order])
            differences.append((f"term {name!r}, sample by sample,", row_difference(noise, expected), tolerance))
    weights = {name: np.float32(stage.weights[name]) for name in names}
    order = next(orders(places, kinds))
    gradients = on_mesh(*over_mesh, _batch(mesh, examples, order, unit), weights)[0]
    # In numpy: on a device each sum would be a program to compile.
    expected = jax.tree.map(np.zeros_like, {group: parameters[0][group] for group in trainable})
    with jax.default_device(alone):
        for part, times in zip(parts, np.bincount(order, minlength=kinds).astype(np.float32), strict=True):
            more = jax.device_get(on_one(*parameters_alone, part, weights)[0])
            expected = jax.tree.map(lambda a, b, times=times: a + times * b, expected, more)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        name = "/".join(str(key.key) for key in path)
        differences.append((f"the gradient of {name}", _leaf_difference(ours, theirs), tolerance))
    return differences


def _derivatives(stage, trainable: tuple[str, ...], reduction: str, mesh: Mesh | None = None) -> Callable:
    """Of the weighted sum of the terms: its derivatives by the trained parameters and by the noise of each sample,
    (B, F); and the terms. A sample's noise reaches its own terms alone."""

    def derivatives(params, frozen, examples, weights):
        noise = {name: a for name, a in examples.items() if a.ndim > 1 and jnp.issubdtype(a.dtype, jnp.floating)}

        def weighted(trained, noise):
            terms = stage.terms({**params, **trained}, frozen, {**examples, **noise}, trainable, False)
            return sum(weight * terms[name] for name, weight in weights.items() if name in terms), terms

        trained = rounded_kernels({group: params[group] for group in trainable}, reduction)
        (by_parameter, by_noise), terms = jax.grad(weighted, (0, 1), has_aux=True)(trained, noise)
        rows = [by_sample(a.reshape(a.shape[0], -1)) for a in by_noise.values()]
        return by_parameter, by_sample(jnp.concatenate(rows, axis=1)), terms

    def over_mesh(params, frozen, examples, weights):
        with laid_out(mesh):
            return derivatives(params, frozen, jax.tree.map(by_sample, examples), weights)

    return derivatives if mesh is None else over_mesh


def _text(rows: int, length: int, stage) -> np.ndarray:
    """Random tokens (rows, length); a document ends in each row, and rows end in padding of several lengths."""
    tokens = np.random.default_rng(0).integers(0, stage.vocab_size, (rows, length)).astype(np.int32)
    tokens[tokens == stage.pad_id] = (stage.pad_id + 1) % stage.vocab_size
    for row in range(rows):
        tokens[row, length // 4 + row % (length // 4 + 1)] = stage.eos_id
        tokens[row, length - row % 3 * (length // 4) :] = stage.pad_id
    return tokens


def _batch(mesh: Mesh, examples: dict, order: np.ndarray, unit: int) -> dict:
    """The examples over the mesh, groups of `unit` rows in an order."""
    rows = (order[:, None] * unit + np.arange(unit)).reshape(-1)
    local = rows[local_rows(mesh, len(rows))]
    return {name: global_batch(mesh, array[local], len(rows)) for name, array in examples.items()}


def _leaf_difference(found: jax.Array, expected: np.ndarray) -> float:
    """The largest relative difference of a shard that this process holds."""
    whole = np.mean(expected**2)
    errors = [np.mean((np.asarray(shard.data) - expected[shard.index]) ** 2) for shard in found.addressable_shards]
    sizes = [max(whole, np.mean(expected[shard.index] ** 2)) for shard in found.addressable_shards]
    return float(max(np.sqrt(error / (size + 1e-30)) for error, size in zip(errors, sizes, strict=True)))
