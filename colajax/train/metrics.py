"""What a run reports: the progress line, TensorBoard, and metrics.jsonl."""

import json
import time

import jax
import jax.numpy as jnp
from etils import epath
from tensorboardX import SummaryWriter

from colajax.files import write_whole

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


class MetricsWriter:
    """Scalars to TensorBoard at once, and to workdir/metrics.jsonl, one JSON object a line, at every `flush`.

    The loop flushes before it saves a checkpoint; a run that goes on from step n drops the lines after n and writes
    them again, so the file reads as if nothing had happened."""

    def __init__(self, workdir: epath.Path, step: int):
        self._path = workdir / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._lines = [line for line in lines if json.loads(line)["step"] <= step]
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1, flush_secs=20)

    def write(self, step: int, kind: str, scalars: dict[str, float]) -> None:
        """kind: "train" or "eval"."""
        for name, value in scalars.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        self._lines.append(json.dumps({"step": step, "kind": kind, **scalars}))

    def board_only(self, step: int, scalars: dict[str, float]) -> None:
        """Speed is shown and not kept: it is not a function of the run."""
        for name, value in scalars.items():
            self._board.add_scalar(f"speed/{name}", value, step)

    def flush(self) -> None:
        write_whole(self._path, "".join(line + "\n" for line in self._lines))
        self._board.flush()

    def close(self) -> None:
        self.flush()
        self._board.close()


class Speed:
    """Tokens per second, model FLOP utilisation and time to go, from one log line to the next."""

    def __init__(self, step: int, total_steps: int):
        self._peak, self._total = peak_flops(), total_steps
        self._step, self._flops, self._time = step, 0.0, time.perf_counter()

    def add(self, flops: float) -> None:
        """Useful operations of one more update."""
        self._flops += flops

    def pause(self, seconds: float) -> None:
        """Takes time out of the account that was not spent training (an evaluation)."""
        self._time += seconds

    def measure(self, step: int, tokens_per_step: int) -> dict[str, float]:
        now = time.perf_counter()
        seconds, steps = max(now - self._time, 1e-9), step - self._step
        report = {
            "tokens_per_second": steps * tokens_per_step / seconds,
            "mfu": self._flops / seconds / self._peak,
            "eta_seconds": (self._total - step) * seconds / max(steps, 1),
        }
        self._step, self._flops, self._time = step, 0.0, now
        return report


def progress_line(step: int, total_steps: int, scalars: dict[str, float], speed: dict[str, float]) -> str:
    """One line a person reads: step, loss, what the stage shows, tokens/s, MFU, EFLOPs, time to go."""
    shown = [f"{name} {scalars[name]:.3f}" for name in ("loss", "accuracy", "log_snr", "skill") if name in scalars]
    minutes, seconds = divmod(int(speed["eta_seconds"]), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"step {step}/{total_steps}  {'  '.join(shown)}  {speed['tokens_per_second']:,.0f} tokens/s  "
        f"MFU {speed['mfu']:.1%}  {scalars['eflops']:.4g} EFLOPs  ETA {hours:d}:{minutes:02d}:{seconds:02d}"
    )
