"""What a run tells while it trains: lines for people, TensorBoard, metrics.jsonl and timeline.jsonl."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from colajax.errors import UserError, tell, warn
from colajax.parallel.agreement import from_first
from colajax.parallel.processes import is_first
from colajax.train.alerts import alerts_of, raised_by
from colajax.train.behind import Behind
from colajax.train.checkpoint import latest_step
from colajax.train.goodput import Clock, shares, totals
from colajax.train.metrics import Lines, MetricsWriter, Speed, progress_line
from colajax.train.setup import Run
from colajax.train.updates import Applied, Skipped

SKIPPED = "skipped"  # folder of a workdir: what there is to know of the updates that were not applied


class Alarm(NamedTuple):
    """first: whether an evaluation raises an alert and the one before it did not; keep, stop: what alerts ask for."""

    first: bool
    keep: bool
    stop: str  # why, or ""


QUIET = Alarm(False, False, "")


class Reporter:
    """Of the loop. Every process has one and calls it alike; the first one writes."""

    def __init__(self, run: Run, config, clock: Clock):
        self._run, self._stage, self._total, self._batch_size = run, run.stage, config.total_steps, config.batch_size
        self._log_every, self._most_in_a_row = config.log_every, config.skips_in_a_row
        self._alerts = alerts_of(config.alerts)
        self._tokens = config.batch_size * config.sequence_length
        self._speed, self._clock, self._step = Speed(run.start, config.total_steps), clock, run.start
        self._writer = self._timeline = None
        if is_first():
            self._files = Behind()
            run.checkpoints.commit_after(self._files.wait)
            self._writer = MetricsWriter(run.workdir, run.start, self._files)
            self._timeline = Lines(run.workdir / "timeline.jsonl", self._files)
            self._note("start", run.start, {
                "began": clock.began, "processes": jax.process_count(), "devices": jax.device_count(),
                "mesh": dict(run.mesh.shape), "device_kind": jax.devices()[0].device_kind, **run.program,
            })  # fmt: skip
            self._timeline.flush()

    def _note(self, event: str, step: int, facts: dict) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._timeline.add({"time": now, "event": event, "step": step, **facts})

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        began = time.perf_counter()
        with self._clock.spending("data"):
            yield
        self._speed.data_wait += time.perf_counter() - began

    def settled(self, update: Applied | Skipped) -> None:
        """One more update is done."""
        if isinstance(update, Skipped):
            self._skipped(update)
        else:
            self._step = update.step
            self._speed.flops += self._stage.flops(self._batch_size, update.trainable)
            if update.step % self._log_every == 0:
                self._train(update.step, update.means)

    def _train(self, step: int, means: dict) -> None:
        scalars = self._stage.summarise(jax.device_get(means)) | self._stage.ledger(self._batch_size, step)
        rates = self._speed.measure(step, self._tokens)
        if self._writer:
            self._writer.write(step, "train", scalars)
            self._writer.board_only("speed", step, rates)
            self._writer.board_only("epochs", step, self._run.loader.epochs(step))
            self._note("train", step, rates)
            tell(progress_line(step, self._total, scalars, rates))

    def _skipped(self, update: Skipped) -> None:
        if not self._writer:
            return
        shown = ", ".join(
            f"{name} {value:.4g}" + (f" (at most {update.limits[name]:.4g})" if value > update.limits[name] else "")
            for name, value in update.means.items() if not value <= update.limits[name]
        )  # fmt: skip
        file = self._run.workdir / SKIPPED / f"{update.begins}-{update.batch}.json"
        # JSON has no NaN and no infinity.
        numbers = {kind: {k: repr(v) for k, v in getattr(update, kind).items()} for kind in ("means", "limits")}
        self._files.write(file, json.dumps(update._asdict() | numbers, indent=1) + "\n")
        self._note("skipped", update.begins, {"batch": update.batch})
        self._timeline.flush()
        warn(f"batch {update.batch} skipped at step {update.begins}: {shown}; its rows are in {file}")

    def went_back(self, step: int | None) -> None:
        """The run goes on from the checkpoint of `step`. Raises UserError where there is none."""
        if step is None:
            self.refuse(f"{self._most_in_a_row} updates in a row were not sound")
        self._step = step
        self._speed.start_again(step)
        if self._writer:
            self._writer.go_back(step)
            self._note("went back", step, {})
            self._timeline.flush()
            warn(f"{self._most_in_a_row} updates in a row were not sound: back to step {step}, past their batches")

    @contextlib.contextmanager
    def evaluating(self, step: int) -> Iterator[Callable[[dict], None]]:
        """While this is open the run is evaluated; yields what takes the means of each source, by its name. Those of a
        mixture are by the shares of the next batch."""
        began, of_source = time.perf_counter(), {}
        with self._clock.spending("evaluation"):
            yield of_source.update
        shares = self._run.loader.shares(step)
        found = {name: sum(shares[source] * means[name] for source, means in of_source.items())
                 for name in next(iter(of_source.values()))}  # fmt: skip
        if not math.isfinite(loss := float(found["loss"])):
            self.refuse(f"the loss of the evaluation is {loss} at step {step}")
        scalars = self._stage.summarise(found)
        if len(of_source) > 1:
            for source, means in of_source.items():
                scalars |= {f"{name}_{source}": value for name, value in self._stage.summarise(means).items()}
        seconds = time.perf_counter() - began
        self._speed.pause(seconds)
        if self._writer:
            self._writer.write(step, "eval", scalars | self._stage.ledger(self._batch_size, step))
            self._note("evaluation", step, {"seconds": seconds})
            tell(f"eval at {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in scalars.items()))

    def alarm(self) -> Alarm:
        """What the last evaluation raises of config.alerts, the same in every process."""
        return Alarm(*from_first(self._alarm))

    def _alarm(self) -> Alarm:
        evaluations = self._writer.evaluations()
        found, before = (raised_by(self._alerts, lines) for lines in (evaluations, evaluations[:-1]))
        step = evaluations[-1]["step"]
        for alert, said in found.items():
            warn(f"step {step}: {said} ({alert.action}: config.alerts)")
            self._note("alert", step, {"figure": alert.figure, "action": alert.action})
        stop = "; ".join(said for alert, said in found.items() if alert.action == "stop")
        return Alarm(bool(found) and not before, any(alert.action == "keep" for alert in found), stop)

    @contextlib.contextmanager
    def saving(self, step: int, finite: bool) -> Iterator[None]:
        """While this is open a checkpoint is begun; what was reported until then is on disk before it takes its name.
        Raises UserError, in place of a checkpoint, where the state is not finite."""
        if not finite:
            self.refuse(f"parameters or optimizer hold NaN or infinity at step {step}, which was not saved")
        if self._writer:
            self._writer.flush()
        began = time.perf_counter()
        with self._clock.spending("save"):
            yield
        if self._writer:
            self._note("save", step, {"seconds": time.perf_counter() - began})
            self._note_spent()
            self._timeline.flush()

    def _note_spent(self) -> dict[str, float]:
        """All that the run has spent so far, over its starts."""
        self._note("spent", self._step, self._clock.spent())
        found = totals(self._timeline)
        self._writer.board_only("seconds", self._step, found)
        return found

    def refuse(self, reason: str, advice: str = "try a lower learning rate in a new --workdir") -> None:
        """Ends the run in every process, with a UserError."""
        self.close()
        self._run.checkpoints.close()
        latest = latest_step(self._run.workdir)
        kept = "there is no checkpoint" if latest is None else f"the last checkpoint is of step {latest}"
        raise UserError(f"{self._run.workdir}: {reason}; {kept}; {advice}")

    def close(self) -> None:
        if self._writer:
            tell(f"{self._run.workdir}: {shares(self._note_spent())}")
            self._timeline.flush()
            self._writer.close()
            self._files.close()
