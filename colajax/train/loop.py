"""The training loop, for every stage."""

from collections.abc import Callable
from contextlib import ExitStack

from etils import epath

from colajax.parallel.agreement import from_first, share_errors
from colajax.train.budgets import with_total_steps
from colajax.train.checkpoint import facts_of
from colajax.train.evaluation import held_out_batches, make_evaluation
from colajax.train.goodput import Clock
from colajax.train.reporter import QUIET, Alarm, Reporter
from colajax.train.setup import Run, copy_records, say, set_up
from colajax.train.signals import StopSignals
from colajax.train.state import is_finite
from colajax.train.updates import AHEAD, Updates
from colajax.train.watchdog import ended_if_it_hangs


def train(config, make_stage: Callable, workdir: epath.PathLike, *, began: float | None = None) -> int:
    """Trains until config.total_steps, from whatever `workdir` holds. make_stage(config, pad_id, eos_id) -> Stage;
    began: time.time() when the process did.

    Every process of a run calls this alike; the first alone writes what people read. Returns 0 when the run is
    complete, or 128 + the number of the signal (SIGINT, SIGTERM) that stopped it, after saving. Raises UserError on a
    configuration that does not fit itself, the devices, the records, or the run in workdir.
    """
    clock = Clock(began)
    config = share_errors(lambda: with_total_steps(config, make_stage))
    with ended_if_it_hangs(config.hang_seconds) as moved, ExitStack() as ends:
        copy_records(config, moved)
        return _train(set_up(config, make_stage, epath.Path(workdir), clock, ends), config, clock, moved)


def _train(run: Run, config, clock: Clock, moved: Callable[[], None]) -> int:
    """moved: to be called whenever the run has."""
    stage, mesh = run.stage, run.mesh
    evaluate = make_evaluation(stage, mesh)
    eval_batches = {
        name: held_out_batches(
            run.held_out, mesh, source, wanted=config.eval_rows, batch_size=config.batch_size, pad_id=stage.pad_id,
            seed=config.data_seed,
        )
        for name, source in run.held_out.sources.items()
    }  # fmt: skip
    reporter, updates = Reporter(run, config, clock), Updates(config, stage, run.optimizer, run.like, run.loader)
    updates.begin_at(run.start, run.state, share_errors(lambda: facts_of(run.workdir, run.start)) if run.start else {})

    def evaluated(step: int) -> Alarm:
        with reporter.evaluating(step) as found:
            found({name: evaluate(updates.state, batches) for name, batches in eval_batches.items()})
        moved()
        return reporter.alarm()

    def refuse(reason: str) -> None:
        reporter.refuse(reason, "the same command goes on where config.alerts lets it")

    if run.owed and (alarm := evaluated(run.start)).stop:
        refuse(alarm.stop)
    stopping = 0
    with StopSignals() as stop:
        if updates.begun < config.total_steps:
            updates.read_first(stop.request)
        attempt = run.start  # unlike a step, it never goes back
        clock.turn("updates")
        while updates.begun < config.total_steps and not stopping:
            with reporter.waiting_for_data():
                local = updates.next_batch()
            updates.begin(local)
            step, attempt = updates.begun, attempt + 1
            stopping = stop.agreed(attempt)  # once: a signal may come at any line
            marked = step in (*run.budgets, config.total_steps)
            evaluating = marked or step % config.eval_every == 0
            saving = marked or step % config.checkpoint_every == 0
            # Or the seconds of an evaluation or a save would have those of updates in them.
            for update in updates.settled(0 if evaluating or saving or stopping else AHEAD):
                moved()
                reporter.settled(update)
            if updates.stuck:
                reporter.went_back(updates.go_back(run))
            reached = updates.begun == step  # not where an update was skipped: what was due is due later
            alarm = evaluated(step) if evaluating and reached else QUIET
            if alarm.first:
                run.checkpoints.keep_last()
            if alarm.keep:
                run.checkpoints.keep(step)
            saving = saving or alarm.keep or bool(alarm.stop)
            if (saving and reached) or stopping:
                from_first(run.lease.check)
                facts = stage.ledger(config.batch_size, updates.begun) | updates.facts() | run.checkpoints.facts()
                with reporter.saving(updates.begun, bool(is_finite(updates.state))):
                    run.checkpoints.save(updates.state, facts)
                moved()
            if alarm.stop:
                refuse(alarm.stop)
        complete = updates.begun == config.total_steps
        if not complete:
            say(f"{run.workdir}: stopped at step {updates.begun}, saved; the same command goes on from there")
        try:
            with clock.spending("save"):
                run.checkpoints.close()
            if not complete:
                updates.check_readable()
        finally:
            reporter.close()
    return 0 if complete else 128 + stopping
