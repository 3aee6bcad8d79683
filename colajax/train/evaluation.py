"""Evaluation on held-out rows: which rows, in which order, and the means of the terms over them."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh

from colajax.axes import by_sample
from colajax.data.loader import Loader
from colajax.keys import evaluation_draw
from colajax.parallel.batch import global_batch, local_rows
from colajax.parallel.rules import laid_out, replicated
from colajax.train.state import TrainState

NO_ROW = -1  # fills the last batch: a row of padding, which counts nowhere


def choose_rows(count: int, wanted: int, batch_size: int, seed: int) -> np.ndarray:
    """The rows of a split of `count` that are evaluated, (batches, rows of a batch) int64, NO_ROW at the end.

    `wanted` of them (an even number, if there are two at all), drawn from the whole split, each once. Rows 2i and
    2i + 1 are partners: one reads the other's prefix for the context gain. They lie half of the chosen rows apart, as
    neighbours on disk are often pieces of one document. Neither the rows nor their order depend on the batch size (one
    that is odd is doubled, which keeps partners together).
    """
    size = batch_size * (1 + batch_size % 2)
    wanted = min(wanted, count)
    wanted -= wanted % 2 if wanted > 1 else 0
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(count, wanted, replace=False))
    if wanted > 1:
        # Which of the two comes first is drawn too: every mask_every-th row has the masked view.
        rows = generator.permuted(rows.reshape(2, -1).T, axis=1).reshape(-1)
    return np.pad(rows, (0, -len(rows) % size), constant_values=NO_ROW).reshape(-1, size)


def held_out_batches(
    held_out: Loader, mesh: Mesh, source: range, *, wanted: int, batch_size: int, pad_id: int, seed: int
) -> list:
    """The rows of `choose_rows`, of those of one source, as [(tokens (B, T) over the mesh, rows (B,)), ...]."""
    batches = []
    for chosen in choose_rows(len(source), wanted, batch_size, seed):
        rows = np.where(chosen == NO_ROW, NO_ROW, source.start + chosen)
        here = rows[local_rows(mesh, len(rows))]
        tokens = np.where((here == NO_ROW)[:, None], pad_id, held_out.sequential(np.maximum(here, 0)))
        batches.append((global_batch(mesh, tokens.astype(np.int32), len(rows)), rows.astype(np.uint32)))
    return batches


def make_evaluation(stage, mesh: Mesh):
    """Returns evaluate(state, batches): the means of the terms over `held_out_batches` of one source, with noise that
    depends on the row alone; numpy."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums_and_counts(params, frozen, tokens, rows):
        with laid_out(mesh):
            examples = jax.tree.map(by_sample, stage.examples(tokens, evaluation_draw(rows)))
            terms = stage.terms(params, frozen, examples, (), True)
            return terms, stage.counts(examples)

    def evaluate(state: TrainState, batches: list) -> dict:
        parts = [sums_and_counts(state.params, state.frozen, *batch) for batch in batches]
        terms, counts = jax.tree.map(lambda *sums: sum(sums[1:], sums[0]), *parts)
        means = {name: stage.mean(name, value, counts) for name, value in terms.items()}
        means["loss"] = sum(w * means[name] for name, w in stage.weights.items() if name in means and w)
        return jax.device_get(means)

    return evaluate
