"""One update: draw, accumulate gradients over parts of the batch, clip, AdamW; and whether it is applied."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from colajax.axes import by_sample
from colajax.keys import training_draw
from colajax.parallel.compiler_options import compiler_options
from colajax.parallel.rules import laid_out, replicated, shardings_of
from colajax.train.optimizer import Optimizer
from colajax.train.state import TrainState


def loss_and_means(stage, params: dict, frozen: dict, examples: dict, counts: dict, trainable: tuple[str, ...]):
    """The share of these examples in the batch's loss, and every term over its count; both add up over parts.

    The means hold the loss as "loss" where all groups are trained; a step that trains some leaves out terms that these
    do not change, and its loss has a name of its own, such as "loss_dit"."""
    terms = stage.terms(params, frozen, examples, trainable, diagnostics=False)
    means = {name: stage.mean(name, total, counts) for name, total in terms.items()}
    loss = sum(weight * means[name] for name, weight in stage.weights.items() if name in means and weight)
    return loss, means | {loss_name(stage, trainable): loss}


def loss_name(stage, trainable: tuple[str, ...]) -> str:
    return "loss" if tuple(trainable) == tuple(stage.groups) else "_".join(("loss", *trainable))


def rounded_kernels(params, dtype):
    """The parameters with every kernel in `dtype`: a kernel's gradient has its kernel's dtype, from the product that
    makes it, through the sum over devices, to here (`models.layers.product`)."""

    def rounded(path, leaf):
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(rounded, params)


def batch_gradients(
    stage, state: TrainState, examples: dict, trainable: tuple[str, ...], parts: int, reduction="float32"
):
    """Float32 gradients of the batch's loss by the trainable groups, {group: tree}, and the means of the terms.
    reduction: the dtype in which devices add up what each has of the kernels' gradients.

    The batch is divided into `parts` equal parts, one computed after the other. Denominators are the whole batch's, so
    `parts` changes nothing but memory."""
    counts = stage.counts(examples)

    def part_gradients(examples_of_part):
        def loss_of(trained):
            params = {**state.params, **trained}
            return loss_and_means(stage, params, state.frozen, examples_of_part, counts, trainable)

        trained = rounded_kernels({group: state.params[group] for group in trainable}, reduction)
        grads, means = jax.grad(loss_of, has_aux=True)(trained)
        return jax.tree.map(lambda gradient: gradient.astype(jnp.float32), grads), means

    if parts == 1:
        return part_gradients(examples)
    split = jax.tree.map(lambda a: a.reshape(parts, a.shape[0] // parts, *a.shape[1:]), examples)

    def add_part(total, examples_of_part):
        # A part is a run of rows, which lie on a few devices: it is spread over all of them again.
        return jax.tree.map(jnp.add, total, part_gradients(jax.tree.map(by_sample, examples_of_part))), None

    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(part_gradients, jax.tree.map(lambda a: a[0], split))
    )
    return jax.lax.scan(add_part, zeros, split)[0]


def watched(stage, trainable: tuple[str, ...]) -> tuple[str, ...]:
    """The means of an update by which it is judged: its loss and the norm of each gradient."""
    return (loss_name(stage, trainable), *(f"gradient_norm_{group}" for group in trainable))


def _is_sound(means: dict, limits: dict) -> jax.Array:
    """Whether each of the watched means, those of `limits`, is a number and at most its limit."""
    return jnp.stack([jnp.isfinite(means[name]) & (means[name] <= limit) for name, limit in limits.items()]).all()


def make_train_step(stage, optimizer: Optimizer, like: TrainState, *, seed: int, parts: int, reduction="float32"):
    """Returns the jitted train_step(state, tokens (B, T) int32, begins, limits, trainable) -> (state, means). The
    state, laid out as `like` (see `abstract_state`), is donated; tokens: `parallel.batch.global_batch`; parts,
    reduction: see `batch_gradients`.

    An update that is not sound is not applied: the state stays as it is, step included, and means["applied"] says so
    (the state itself decides, so that nothing waits for the host). limits: {name: the largest sound value} of
    `watched`. begins: the step that the host takes the state to be at; where an update before was not applied, it is
    wrong, and neither is this one: its batch is to come again, with the step that it is the batch of.

    `trainable` is static: a step that leaves a group alone is a program of its own, and does not compute its
    gradients."""
    mesh = like.step.sharding.mesh

    @functools.partial(
        jax.jit, static_argnames="trainable", donate_argnames="state",
        out_shardings=(shardings_of(like), replicated(mesh)),
        compiler_options=compiler_options(mesh.devices.flat[0].device_kind),
    )  # fmt: skip
    def train_step(state: TrainState, tokens, begins, limits: dict, trainable: tuple[str, ...]):
        draw = training_draw(seed, state.step, jnp.arange(tokens.shape[0]))
        with laid_out(mesh):
            examples = jax.tree.map(by_sample, stage.examples(tokens, draw))
            grads, means = batch_gradients(stage, state, examples, trainable, parts, reduction)
        with jax.named_scope("optimizer"):
            params, opt_state, reports = optimizer.update(grads, state.opt_state, state.params, state.step)
            means = means | reports
            applied = (state.step == begins) & _is_sound(means, limits)
            new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
            new = jax.tree.map(lambda new, old: old if new is old else jnp.where(applied, new, old), new, state)
        return new, means | {"applied": applied}

    return train_step
