"""An update that a run left out, done again from what the run has kept of it: a file of WORKDIR/skipped."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from colajax.errors import UserError
from colajax.files import read_json
from colajax.keys import training_draw
from colajax.parallel.batch import check_batch
from colajax.parallel.mesh import make_mesh
from colajax.parallel.rules import laid_out
from colajax.train.checkpoint import facts_of, previous_step, read_params, read_state
from colajax.train.config import changed
from colajax.train.kept import run_config
from colajax.train.optimizer import optimizer_of
from colajax.train.setup import loader_of
from colajax.train.state import TrainState, abstract_state, fresh_state
from colajax.train.step import batch_gradients
from colajax.train.updates import Skipped, Updates


class Replayed(NamedTuple):
    """again: as this machine has it, None where it is sound here; since: the checkpoint that it was reached from (0:
    the run's beginning); texts: the batch's rows; gradients: the norm of each parameter's."""

    recorded: Skipped
    again: Skipped | None
    since: int
    texts: list[str]
    gradients: dict[str, float]


def replay(file: epath.Path, config, make_stage: Callable) -> Replayed:
    """config: the run's, whose mesh, records and the like may be others (`config.OPERATIONAL`); nothing is written.
    Raises UserError on a file that is damaged, and where the run has not kept what the update hangs on."""
    recorded, workdir = _recorded(file), file.parent.parent
    loader = loader_of(changed(config, records_cache=""), "train")
    if loader.rows_of(recorded.batch) != recorded.rows:
        raise UserError(f"{file}: batch {recorded.batch} of {config.records} has other rows; name the run's records")
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.batch_size, config.accumulation_steps)
    tokenizer = loader.records.metadata["tokenizer"]
    stage = make_stage(config, tokenizer["pad_id"], tokenizer["eos_id"])
    optimizer = optimizer_of(config, stage)
    like = abstract_state(stage, optimizer, mesh)
    since = _checkpoint_before(workdir, recorded)
    if since < recorded.began_at:
        raise UserError(
            f"{file}: the run has kept no checkpoint of steps {recorded.began_at} to {recorded.begins}, from which it "
            f"came to this update; a smaller keep_every keeps more of them"
        )
    state = read_state(workdir, since, like) if since else _beginning(workdir, stage, optimizer, like, config.seed)
    updates, again, gradients = Updates(config, stage, optimizer, like, loader), None, None
    batch = recorded.began_with if since == recorded.began_at else None
    updates.begin_at(since, state, facts_of(workdir, since) if since else {}, batch)
    while updates.begun <= recorded.begins and updates.begun + updates.skipped <= recorded.batch:
        if updates.begun + updates.skipped == recorded.batch:
            gradients = _gradients(stage, updates.state, loader.batch(recorded.batch), config)
        updates.begin(updates.next_batch())
        for update in updates.settled(0):
            if isinstance(update, Skipped) and update.batch == recorded.batch:
                again = update
    if gradients is None:
        raise UserError(f"{file}: on this machine the run does not come to batch {recorded.batch} at that step")
    tokenizer = loader.records.tokenizer()
    texts = [tokenizer.decode([int(token) for token in row]) for row in loader.batch(recorded.batch)]
    return Replayed(recorded, again, since, texts, gradients)


def _checkpoint_before(workdir: epath.Path, recorded: Skipped) -> int:
    """The newest that the run had when it came to the update, 0 for its beginning. What it has saved of these steps
    after it went back has had later batches."""
    step = previous_step(workdir, recorded.begins + 1)
    while step is not None and step + facts_of(workdir, step).get("skipped", 0) > recorded.batch:
        step = previous_step(workdir, step)
    return step or 0


def _recorded(file: epath.Path) -> Skipped:
    found = read_json(file, *Skipped._fields)
    try:
        numbers = {kind: {k: float(v) for k, v in found[kind].items()} for kind in ("means", "limits")}
        update = Skipped(**found | numbers)
        numbers = (update.begins, update.batch, update.began_at, update.began_with, *update.rows)
        sound = all(type(x) is int and 0 <= x < 2**31 for x in numbers) and update.means.keys() == update.limits.keys()
    except (TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{file}: not what a run writes to WORKDIR/skipped; name a file of that folder")
    return update


def _beginning(workdir, stage, optimizer, like: TrainState, seed: int) -> TrainState:
    loaded = None
    if stage.init_from:
        step = run_config(workdir)["facts"]["init"]["step"]
        _, loaded = read_params(stage.init_from, step, like={group: like.params[group] for group in stage.init_groups})
    return fresh_state(stage, optimizer, like, seed=seed, loaded=loaded)


def _gradients(stage, state: TrainState, rows: np.ndarray, config) -> dict[str, float]:
    """{name: norm of the gradient} of each parameter; rows: the whole batch (B, T)."""
    mesh = state.step.sharding.mesh

    @jax.jit
    def norms(state, tokens):
        draw = training_draw(config.seed, state.step, np.arange(len(tokens)))
        with laid_out(mesh):
            found, _ = batch_gradients(
                stage, state, stage.examples(tokens, draw), stage.groups, config.accumulation_steps
            )
        return jax.tree.map(lambda gradient: jnp.linalg.norm(gradient.ravel()), found)

    found = jax.device_get(norms(state, rows))
    return {jax.tree_util.keystr(path, simple=True, separator="."): float(norm)
            for path, norm in jax.tree.leaves_with_path(found)}  # fmt: skip
