"""What a run needs before its first step: data, stage, optimizer, agreement of the processes, parameters."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from etils import epath
from jax.sharding import Mesh

from colajax.data.loader import Loader
from colajax.data.local_copy import local_copies
from colajax.data.mixture import folders_of, schedule_of
from colajax.data.records import DAMAGED
from colajax.data.tokenizer import Tokenizer
from colajax.errors import UserError, tell, warn
from colajax.files import write_whole
from colajax.keys import check_seed
from colajax.parallel.agreement import check_agreement, from_first, share_errors
from colajax.parallel.batch import check_batch
from colajax.parallel.mesh import make_mesh
from colajax.parallel.processes import is_first
from colajax.train.alerts import alerts_of
from colajax.train.aside import set_damaged_aside
from colajax.train.budgets import budget_steps, check_kept
from colajax.train.checkpoint import Checkpoints, checkpoint_step, facts_of, latest_step, read_params
from colajax.train.config import check_config, config_digest, keep_config
from colajax.train.fingerprint import fingerprint
from colajax.train.goodput import Clock
from colajax.train.kept import run_config
from colajax.train.lease import Lease
from colajax.train.metrics import read_lines
from colajax.train.optimizer import Optimizer, optimizer_of
from colajax.train.provenance import commit, versions
from colajax.train.self_check import check_layout
from colajax.train.state import TrainState, abstract_state, fresh_state


class Run(NamedTuple):
    """A run that can take its next step."""

    workdir: epath.Path
    mesh: Mesh
    loader: Loader
    held_out: Loader
    stage: Any  # a stages.base.Stage
    optimizer: Optimizer
    like: TrainState  # the state's shapes and layout
    state: TrainState
    start: int  # updates applied so far
    budgets: tuple[int, ...]  # their steps
    owed: bool  # whether `start` is a budget that has not been evaluated
    checkpoints: Checkpoints
    lease: Lease
    program: dict[str, str]  # versions of libraries, commit


class _Parts(NamedTuple):
    """What every process finds by itself."""

    loader: Loader
    held_out: Loader
    tokenizer: Tokenizer
    stage: Any
    optimizer: Optimizer
    like: TrainState
    start: int | None  # step of the run's checkpoint; None: it begins
    budgets: tuple[int, ...]
    owed: bool
    init_step: int | None  # of the checkpoint that it begins with
    facts: dict[str, object]  # for config.json


def set_up(config, make_stage: Callable, workdir: epath.Path, clock: Clock, ends: ExitStack) -> Run:
    """Every process of a run calls this alike. make_stage(config, pad_id, eos_id) -> Stage; ends: to be closed when the
    run ends, as until then it holds the workdir. Raises UserError, in all of them, on a configuration that does not fit
    itself, the devices, the records, or the run in workdir."""
    program = versions() | {"commit": commit()}
    mesh = share_errors(lambda: make_mesh(config.mesh))
    from_first(lambda: set_damaged_aside(workdir))
    parts = share_errors(lambda: _find(config, make_stage, workdir, mesh))
    check_agreement(
        {"the run's step": parts.start, "init_step": parts.init_step, "the configuration": config_digest(config)}
        | parts.facts | program
    )  # fmt: skip
    stage, like = parts.stage, parts.like
    check_layout(config, make_stage, stage.pad_id, stage.eos_id, mesh)

    # ---- parameters, in order of priority: this run's checkpoint; the run it begins with; fresh ---------------------
    facts, loaded = parts.facts, None
    if parts.start is None and stage.init_from:
        loaded = _read_start(stage, parts.init_step, like)
        facts = facts | {"init": {"step": parts.init_step, "digest": fingerprint(loaded)}}
        share_errors(lambda: check_config(workdir, config, facts))
    lease = Lease(workdir)
    from_first(lease.take)
    ends.enter_context(lease.kept())  # from here: restoring and compiling may take minutes, and fail
    kept = share_errors(lambda: facts_of(workdir, parts.start).get("kept", ())) if parts.start else ()
    checkpoints = Checkpoints(workdir, keep_every=config.keep_every, budgets=parts.budgets, kept=kept)
    if parts.start is not None:
        with clock.spending("restore"):
            state = checkpoints.restore(parts.start, like)
        say(f"{workdir}: going on from step {parts.start}")
    else:
        state = fresh_state(stage, parts.optimizer, like, seed=config.seed, loaded=loaded)
    share_errors(lambda: _keep(workdir, config, facts, parts.tokenizer) if is_first() else None)
    _say_epochs(config, parts.loader)
    return Run(
        workdir, mesh, parts.loader, parts.held_out, stage, parts.optimizer, like, state, parts.start or 0,
        parts.budgets, parts.owed, checkpoints, lease, program,
    )  # fmt: skip


def _find(config, make_stage: Callable, workdir: epath.Path, mesh: Mesh) -> _Parts:
    """What needs no other process."""
    _check_ranges(config)
    alerts_of(config.alerts)
    loader, held_out = loader_of(config, "train"), loader_of(config, "validation")
    metadata, tokenizer = loader.records.metadata, loader.records.tokenizer()
    stage = make_stage(config, metadata["tokenizer"]["pad_id"], metadata["tokenizer"]["eos_id"])
    if tokenizer.vocab_size > stage.vocab_size:
        raise UserError(
            f"config.{stage.groups[0]}.vocab_size is {stage.vocab_size}: the tokenizer of {config.records} has "
            f"{tokenizer.vocab_size} tokens; set it to at least that"
        )
    optimizer = optimizer_of(config, stage)
    check_batch(mesh, config.batch_size, config.accumulation_steps)
    like = abstract_state(stage, optimizer, mesh)
    if workdir.is_file():
        raise UserError(f"{workdir}: a file; expected a folder, which may not be there yet")
    start = latest_step(workdir)
    facts = {"tokenizer": tokenizer.digest, "records": loader.identity}
    batches = start + facts_of(workdir, start).get("skipped", 0) if start else 0
    kept = check_config(workdir, config, facts, batches)
    if (start or 0) > config.total_steps:
        raise UserError(f"config.total_steps is {config.total_steps}: the run in {workdir} is at step {start} already")
    budgets = budget_steps(config, stage)
    check_kept(workdir, config, budgets, start or 0)
    lines = read_lines(workdir / "metrics.jsonl") if start in budgets else []
    owed = start in budgets and not any(line["step"] == start and line["kind"] == "eval" for line in lines)
    init_step = _init_step(stage, tokenizer.digest, kept) if start is None else None
    return _Parts(loader, held_out, tokenizer, stage, optimizer, like, start, budgets, owed, init_step, facts)


def _say_epochs(config, loader: Loader) -> None:
    for name, epochs in loader.epochs(config.total_steps).items():
        if 0 < config.max_epochs < epochs and is_first():
            warn(f"{config.total_steps:,} steps go through {name} {epochs:.3g} times: more than config.max_epochs")


def copy_records(config, moved: Callable[[], None]) -> None:
    """Makes the copies that config.records_cache asks for, in which moved() is called: they may take hours. Raises
    UserError, in every process, where one cannot."""

    def copy() -> None:
        if config.records_cache:  # which may be another on every machine
            local_copies(folders_of(schedule_of(config.records)), config.records_cache, moved)

    share_errors(copy)


def loader_of(config, split: str) -> Loader:
    """Of the records that a configuration names. Raises UserError where they are not what it expects."""
    return Loader(
        config.records, split, config.batch_size, config.sequence_length, config.data_seed, config.damaged_rows,
        check=is_first(), cache=config.records_cache,
    )  # fmt: skip


def _check_ranges(config) -> None:
    for key in ("log_every", "eval_every", "checkpoint_every", "keep_every", "eval_rows", "batch_size", "total_steps",
                "skips_in_a_row"):  # fmt: skip
        if config[key] < 1:
            raise UserError(f"config.{key} is {config[key]}: expected at least 1")
    if config.damaged_rows not in DAMAGED:
        raise UserError(f"config.damaged_rows is {config.damaged_rows!r}: expected {' or '.join(DAMAGED)}")
    if config.spike_sigmas < 0:
        raise UserError(f"config.spike_sigmas is {config.spike_sigmas}: expected 0 (no bound) or more, such as 6")
    if config.max_epochs < 0:
        raise UserError(f"config.max_epochs is {config.max_epochs}: expected 0 (any number) or more, such as 4")
    if config.hang_seconds < 0:
        raise UserError(f"config.hang_seconds is {config.hang_seconds}: expected 0 (never) or more")
    for key in ("seed", "data_seed"):
        check_seed(f"config.{key}", config[key])


def _init_step(stage, tokenizer_digest: str, kept: dict | None) -> int | None:
    """The step of the checkpoint that the stage begins with: the one that is asked for, the one that this run began
    with before it was stopped without a checkpoint of its own, or the latest. Raises UserError unless it fits."""
    source = stage.init_from
    found = run_config(source) if source else None
    stage.check_start(found)
    if found is None:
        return None
    if found["facts"]["tokenizer"] != tokenizer_digest:
        raise UserError(f"{source}: trained with another tokenizer than the one of the records")
    began = (kept or {"facts": {}})["facts"].get("init")
    return checkpoint_step(source, began["step"] if began and stage.init_step is None else stage.init_step)


def _read_start(stage, step: int, like: TrainState) -> dict:
    """The parameters of the run that the stage begins with, laid out as its own."""
    _, loaded = read_params(stage.init_from, step, like={group: like.params[group] for group in stage.init_groups})
    say(f"{', '.join(loaded)} from {stage.init_from}, step {step}")
    return loaded


def _keep(workdir: epath.Path, config, facts: dict, tokenizer: Tokenizer) -> None:
    """The configuration and the tokenizer beside the checkpoints."""
    keep_config(workdir, config, facts)
    kept = workdir / tokenizer.path.name
    if not kept.exists():
        write_whole(kept, tokenizer.path.read_bytes())


def say(line: str) -> None:
    """Prints a line, once for all processes."""
    if is_first():
        tell(line)
