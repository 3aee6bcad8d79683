"""What a run tells while it trains: lines for people, TensorBoard, metrics.jsonl and timeline.jsonl."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator

import jax

from colajax.errors import UserError
from colajax.parallel.processes import is_first
from colajax.train.checkpoint import latest_step
from colajax.train.metrics import Lines, MetricsWriter, Speed, progress_line
from colajax.train.setup import Run


class Reporter:
    """Of the loop. Every process has one and calls it alike; the first one writes."""

    def __init__(self, run: Run, config):
        self._run, self._stage, self._total, self._batch_size = run, run.stage, config.total_steps, config.batch_size
        self._tokens = config.batch_size * config.sequence_length
        self._speed = Speed(run.start, config.total_steps)
        self._writer = self._timeline = None
        if is_first():
            self._writer = MetricsWriter(run.workdir, run.start)
            self._timeline = Lines(run.workdir / "timeline.jsonl")
            self._note("start", run.start, {
                "processes": jax.process_count(), "devices": jax.device_count(), "mesh": dict(run.mesh.shape),
                "device_kind": jax.devices()[0].device_kind, **run.program,
            })  # fmt: skip
            self._timeline.flush()

    def _note(self, event: str, step: int, facts: dict) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._timeline.add({"time": now, "event": event, "step": step, **facts})

    def waited_for_data(self, seconds: float) -> None:
        self._speed.data_wait += seconds

    def updated(self, trainable: tuple[str, ...]) -> None:
        """One more update is under way."""
        self._speed.flops += self._stage.flops(self._batch_size, trainable)

    def train(self, step: int, means: dict) -> None:
        """The means of the update that led to `step`. Raises UserError on a loss or a gradient that is no
        number."""
        scalars = self._stage.summarise(jax.device_get(means)) | self._stage.ledger(self._batch_size, step)
        self._check_finite(step, scalars)
        rates = self._speed.measure(step, self._tokens)
        if self._writer:
            self._writer.write(step, "train", scalars)
            self._writer.board_only(step, rates)
            self._note("train", step, rates)
            print(progress_line(step, self._total, scalars, rates), flush=True)

    @contextlib.contextmanager
    def evaluating(self, step: int) -> Iterator[Callable[[dict], None]]:
        """While this is open the run is evaluated; yields what takes the means of the evaluation."""
        began, found = time.perf_counter(), {}
        yield found.update
        self._check_finite(step, {"loss": float(found["loss"])})
        scalars = self._stage.summarise(found)
        seconds = time.perf_counter() - began
        self._speed.pause(seconds)
        if self._writer:
            self._writer.write(step, "eval", scalars | self._stage.ledger(self._batch_size, step))
            self._note("evaluation", step, {"seconds": seconds})
            print(f"eval at {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in scalars.items()), flush=True)
            for warning in self._stage.warnings(scalars):
                print(f"WARNING at step {step}: {warning}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def saving(self, step: int, finite: bool) -> Iterator[None]:
        """While this is open a checkpoint is begun; what was reported until then is on disk before. Raises UserError,
        in place of a checkpoint, where the state is not finite."""
        if not finite:
            self._refuse(f"parameters or optimizer hold NaN or infinity at step {step}, which was not saved")
        if self._writer:
            self._writer.flush()
        began = time.perf_counter()
        yield
        if self._writer:
            self._note("save", step, {"seconds": time.perf_counter() - began})
            self._timeline.flush()

    def _check_finite(self, step: int, scalars: dict) -> None:
        checked = (name for name in scalars if name.startswith(("loss", "gradient_norm")))
        wrong = next((name for name in checked if not math.isfinite(scalars[name])), None)
        if wrong is None:
            return
        self._refuse(f"the {wrong} is {scalars[wrong]} at step {step}")

    def _refuse(self, reason: str) -> None:
        self.close()
        self._run.checkpoints.close()
        latest = latest_step(self._run.workdir)
        kept = "there is no checkpoint" if latest is None else f"the last checkpoint is of step {latest}"
        raise UserError(f"{self._run.workdir}: {reason}; {kept}; try a lower learning rate in a new --workdir")

    def close(self) -> None:
        if self._writer:
            self._writer.close()
            self._timeline.flush()
