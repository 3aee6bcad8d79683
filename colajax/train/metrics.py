"""What a run reports: the progress line, TensorBoard, and metrics.jsonl."""

import json
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from etils import epath

from colajax.errors import UserError
from colajax.train.behind import Behind
from colajax.train.board import Board

# Dense bfloat16 peak of one chip (jax device), FLOP/s, by a part of its device_kind; the makers' data sheets.
PEAK_FLOPS = (
    ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5e", 197e12), ("TPU v5", 459e12), ("TPU v6", 918e12),
    ("TPU7x", 1154e12), ("H200", 989e12), ("H100", 989e12), ("A100", 312e12),
)  # fmt: skip


def peak_of(device_kind: str) -> float | None:
    """FLOP/s of one device, as JAX calls its kind; None for one that is not in the table."""
    return next((flops for kind, flops in PEAK_FLOPS if kind in device_kind), None)


def peak_flops() -> float:
    """FLOP/s of all devices together. For a device that is not in the table: what a float32 matrix product reaches."""
    if peak := peak_of(jax.devices()[0].device_kind):
        return peak * jax.device_count()
    size = 1024
    product = jax.jit(lambda a: a @ a)
    a = product(jnp.ones((size, size), jnp.float32)).block_until_ready()
    best = min(_seconds(lambda: product(a).block_until_ready()) for _ in range(5))
    return 2 * size**3 / best * jax.device_count()


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


EVENTS = ("start", "train", "evaluation", "save", "spent", "skipped", "went back", "alert")  # of timeline.jsonl


class Lines:
    """A file of JSON objects, one a line, written whole at every `flush`. What a run wrote before is kept, but for a
    last line that was cut."""

    def __init__(self, path: epath.Path, files: Behind):
        self._path, self._lines, self._files = path, read_lines(path), files

    def add(self, line: dict) -> None:
        self._lines.append(line)

    def __iter__(self) -> Iterator[dict]:
        return iter(self._lines)

    def drop(self, dropped: Callable[[dict], bool]) -> None:
        self._lines = [line for line in self._lines if not dropped(line)]

    def flush(self) -> None:
        self._files.write(self._path, "".join(json.dumps(line) + "\n" for line in self._lines))


def read_lines(path: epath.Path) -> list[dict]:
    """The objects of a file of JSON lines, none where it is missing; a last line that was cut off is left out. Raises
    UserError naming another line that is damaged."""
    texts = path.read_bytes().splitlines() if path.exists() else []
    found = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            line["step"] + 0  # anything but a number raises
            found.append(line)
        except (ValueError, KeyError, TypeError):
            if number < len(texts):
                raise UserError(f"{path}:{number}: not a line of a run's log; mend or remove it") from None
    return found


class MetricsWriter:
    """Scalars to TensorBoard, and to workdir/metrics.jsonl at every `flush`.

    The loop flushes before it saves a checkpoint, which waits for the file before it takes its name; a run that goes on
    from step n drops the lines after n and writes them again, so the file reads as if nothing had happened. Speed is
    not a function of the run: it is in TensorBoard and, with the times of day, in workdir/timeline.jsonl, from which
    nothing is dropped."""

    def __init__(self, workdir: epath.Path, step: int, files: Behind):
        self._lines, self._folder = Lines(workdir / "metrics.jsonl", files), workdir / "tensorboard"
        self._begin_at(step)

    def _begin_at(self, step: int) -> None:
        self._lines.drop(lambda line: line["step"] > step)
        self._board = Board(self._folder, step)

    def go_back(self, step: int) -> None:
        """What was written of later steps is not of the run."""
        self._board.close()
        self._begin_at(step)

    def write(self, step: int, kind: str, scalars: dict[str, float]) -> None:
        """kind: "train" or "eval"."""
        self._board.add(step, {f"{kind}/{name}": value for name, value in scalars.items()})
        self._lines.add({"step": step, "kind": kind, **scalars})

    def evaluations(self) -> list[dict]:
        """What was written of kind "eval" up to here, before this start too."""
        return [line for line in self._lines if line.get("kind") == "eval"]

    def board_only(self, kind: str, step: int, scalars: dict[str, float]) -> None:
        """kind: "speed", "seconds" or "epochs"."""
        self._board.add(step, {f"{kind}/{name}": value for name, value in scalars.items()})

    def flush(self) -> None:
        self._lines.flush()
        self._board.flush()

    def close(self) -> None:
        self._board.close()
        self._lines.flush()


class Speed:
    """Tokens per second, model FLOP utilisation, the wait for data and time to go, from one log line to the next.

    flops, data_wait: useful operations and seconds since the last line; whoever trains adds to them."""

    def __init__(self, step: int, total_steps: int):
        self._peak, self._total = peak_flops(), total_steps
        self.start_again(step)

    def start_again(self, step: int) -> None:
        self._step, self._time, self.flops, self.data_wait = step, time.perf_counter(), 0.0, 0.0

    def pause(self, seconds: float) -> None:
        """Takes time out of the account that was not spent training (an evaluation)."""
        self._time += seconds

    def measure(self, step: int, tokens_per_step: int) -> dict[str, float]:
        now = time.perf_counter()
        seconds, steps = max(now - self._time, 1e-9), step - self._step
        report = {
            "tokens_per_second": steps * tokens_per_step / seconds,
            "mfu": self.flops / seconds / self._peak,
            "seconds": seconds,
            "data_wait_seconds": self.data_wait,
            "eta_seconds": (self._total - step) * seconds / max(steps, 1),
        }
        self.start_again(step)
        return report


def progress_line(step: int, total_steps: int, scalars: dict[str, float], speed: dict[str, float]) -> str:
    """One line a person reads: step, loss, what the stage shows, tokens/s, MFU, EFLOPs (of the compute axis; exact),
    time to go."""
    names = ("loss", "loss_dit", "accuracy", "log_snr", "skill")
    shown = [f"{name} {scalars[name]:.3f}" for name in names if name in scalars]
    minutes, seconds = divmod(int(speed["eta_seconds"]), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"step {step}/{total_steps}  {'  '.join(shown)}  {speed['tokens_per_second']:,.0f} tokens/s  "
        f"MFU {speed['mfu']:.1%}  {scalars['eflops']:.4g} EFLOPs "
        f"(exact {scalars['exact_eflops']:.4g})  ETA {hours:d}:{minutes:02d}:{seconds:02d}"
    )
