"""The training loop, for every stage."""

import math
import os
import signal
import sys
import time

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from colajax.data.loader import Loader
from colajax.data.records import digest
from colajax.errors import UserError
from colajax.files import write_whole
from colajax.keys import check_seed
from colajax.parallel.batch import check_batch, global_batch, local_rows
from colajax.parallel.mesh import make_mesh
from colajax.parallel.processes import is_first
from colajax.train.checkpoint import Checkpoints, latest_step, read_params, run_config
from colajax.train.config import keep_config
from colajax.train.metrics import MetricsWriter, Speed, progress_line
from colajax.train.optimizer import optimizer_of
from colajax.train.state import abstract_state, fresh_state
from colajax.train.step import make_evaluation, make_train_step


def train(config, make_stage, workdir) -> int:
    """Trains until config.total_steps, from whatever `workdir` holds. make_stage(config, pad_id) -> Stage.

    Every process of a run calls this alike; the first alone writes what people read. Returns 0 when the run is
    complete, or 128 + the number of the signal (SIGINT, SIGTERM) that stopped it, after saving. Raises UserError on a
    configuration that does not fit itself, the devices, the records, or the run in workdir.
    """
    _check_intervals(config)
    mesh = make_mesh(config.mesh)

    # ---- data -------------------------------------------------------------------------------------------------------
    loader = Loader(_records_folder(config), "train", config.batch_size, config.sequence_length, config.data_seed)
    held_out = Loader(config.records, "validation", config.batch_size, config.sequence_length, config.data_seed)
    metadata = loader.records.metadata
    tokenizer = loader.records.tokenizer()

    # ---- the run: configuration, stage, optimizer -------------------------------------------------------------------
    stage = make_stage(config, metadata["tokenizer"]["pad_id"])
    if tokenizer.vocab_size > stage.vocab_size:
        raise UserError(
            f"config.vae.vocab_size is {stage.vocab_size}: the tokenizer of {config.records} has "
            f"{tokenizer.vocab_size} tokens; set it to at least that"
        )
    optimizer = optimizer_of(config, stage)
    check_batch(mesh, config.batch_size, config.accumulation_steps)
    like = abstract_state(stage, optimizer, mesh)
    workdir = epath.Path(workdir)
    if workdir.is_file():
        raise UserError(f"{workdir}: a file; expected a folder, which may not be there yet")
    start = latest_step(workdir)
    if start is None:
        _check_start(stage, tokenizer.digest)
    facts = {"tokenizer": tokenizer.digest, "records": digest(metadata)}
    keep_config(workdir, config, facts, write=is_first())
    kept = workdir / tokenizer.path.name
    if is_first() and not kept.exists():
        write_whole(kept, tokenizer.path.read_bytes())

    # ---- parameters, in order of priority: this run's checkpoint; a stage 1 run; fresh -------------------------------
    checkpoints = Checkpoints(workdir, keep_every=config.keep_every)
    if start is None:
        loaded = _read_start(stage, like) if stage.init_from else None
        state = fresh_state(stage, optimizer, like, seed=config.seed, loaded=loaded)
    else:
        state = checkpoints.restore(start, like)
        say(f"{workdir}: going on from step {start}")
    start = start or 0

    # ---- the loop ---------------------------------------------------------------------------------------------------
    train_step = make_train_step(
        stage, optimizer, like, seed=config.seed, parts=config.accumulation_steps, reduction=config.gradient_reduction
    )
    evaluate = make_evaluation(stage, mesh)
    rows = local_rows(mesh, config.batch_size)
    eval_batches = _eval_batches(held_out, config, mesh)
    writer = MetricsWriter(workdir, start) if is_first() else None
    speed = Speed(start, config.total_steps)
    tokens_per_step = config.batch_size * config.sequence_length
    eflops_per_step = 6 * stage.compute_params() * tokens_per_step / 1e18

    def report(step, means):
        scalars = stage.summarise(jax.device_get(means)) | {"eflops": eflops_per_step * step}
        if not math.isfinite(scalars["loss"]):
            checkpoints.close()
            raise UserError(
                f"{workdir}: the loss is {scalars['loss']} at step {step}; the last checkpoint is of step "
                f"{latest_step(workdir)}; go on from a lower learning rate in a new --workdir"
            )
        rates = speed.measure(step, tokens_per_step)
        if writer:
            writer.write(step, "train", scalars)
            writer.board_only(step, rates)
            print(progress_line(step, config.total_steps, scalars, rates), flush=True)

    def report_evaluation(step):
        began = time.perf_counter()
        scalars = stage.summarise(evaluate(state, eval_batches))
        if writer:
            writer.write(step, "eval", scalars)
            print(f"eval at {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in scalars.items()), flush=True)
            for warning in stage.warnings(scalars):
                print(f"WARNING at step {step}: {warning}", file=sys.stderr, flush=True)
        speed.pause(time.perf_counter() - began)

    def save():
        if writer:
            writer.flush()
        checkpoints.save(state)

    pending = None  # (step, means) of a step whose numbers are fetched once the next one is under way
    with StopSignals() as stop:
        batches = loader.iterate(start, rows)
        for step in range(start, config.total_steps):
            trainable = stage.trainable(step)
            state, means = train_step(state, global_batch(mesh, next(batches), config.batch_size), trainable)
            if pending:
                report(*pending)
                pending = None
            speed.add(stage.flops(config.batch_size, trainable))
            done = step + 1
            if done % config.log_every == 0:
                pending = (done, means)
            last, stopping = done == config.total_steps, stop.agreed(done)  # once: a signal may come at any line
            evaluating = last or done % config.eval_every == 0
            saving = last or stopping or done % config.checkpoint_every == 0
            if pending and (evaluating or saving):
                report(*pending)
                pending = None
            if evaluating:
                report_evaluation(done)
            if saving:
                save()
            if stopping and not last:
                say(f"{workdir}: stopped at step {done}, saved; the same command goes on from there")
                break
        if writer:
            writer.close()
        checkpoints.close()
    complete = int(state.step) == config.total_steps
    return 0 if complete else 128 + stopping


def say(line: str) -> None:
    """Prints a line, once for all processes."""
    if is_first():
        print(line, flush=True)


class StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one does what it always did.

    Where there are several processes JAX notes SIGTERM and has all of them stop after the same step: a signal to one
    is enough."""

    def __enter__(self):
        self._number, self._many = 0, jax.process_count() > 1
        noted = (signal.SIGINT,) if self._many else (signal.SIGINT, signal.SIGTERM)
        self._before = {s: signal.signal(s, self._note) for s in noted}
        return self

    def _note(self, number, frame):
        signal.signal(number, self._before[number])
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._number = number

    def agreed(self, step: int) -> int:
        """The signal that the run stops of after `step`, or 0. To be asked once a step, in every process."""
        if not self._many:
            return self._number
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0

    def __exit__(self, *exc):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _check_intervals(config) -> None:
    for key in ("log_every", "eval_every", "checkpoint_every", "keep_every", "eval_rows"):
        if config[key] < 1:
            raise UserError(f"config.{key} is {config[key]}: expected at least 1")
    for key in ("seed", "data_seed"):
        check_seed(f"config.{key}", config[key])


def _records_folder(config) -> str:
    if not config.records:
        raise UserError("config.records: expected a folder made by tools/prepare_data.py; pass --config.records=DIR")
    return config.records


def _check_start(stage, tokenizer_digest: str) -> None:
    """Raises UserError unless the run that the stage begins with is there and fits."""
    source = stage.init_from
    found = run_config(source) if source else None
    stage.check_start(found)
    if found is None:
        return
    if found["facts"]["tokenizer"] != tokenizer_digest:
        raise UserError(f"{source}: trained with another tokenizer than the one of the records")
    if latest_step(source) is None:
        raise UserError(f"{source}: no checkpoint there yet; let that run save one first")


def _read_start(stage, like) -> dict:
    """The parameters of the run that the stage begins with, laid out as its own."""
    step, loaded = read_params(stage.init_from, like={group: like.params[group] for group in stage.init_groups})
    say(f"{', '.join(loaded)} from {stage.init_from}, step {step}")
    return loaded


def _eval_batches(held_out: Loader, config, mesh) -> list[jax.Array]:
    """Held-out rows in whole batches; the first rows again where the last batch is short."""
    count, size = min(config.eval_rows, held_out.rows), config.batch_size
    indices = np.resize(np.arange(count), (-(-count // size), size))
    rows = local_rows(mesh, size)
    return [global_batch(mesh, held_out.sequential(batch[rows]), size) for batch in indices]
