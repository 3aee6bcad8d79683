"""What is done to a training: each fault a function of the trainer, a generator of random numbers and the seconds that
an undisturbed run takes. It says what it did, or None where it came too late."""

import contextlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from colajax.chaos.trainer import Trainer

LONG = 600.0  # seconds


def killed(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """SIGKILL at any moment."""
    after = rng.uniform(0, seconds)
    trainer.wait_for(lambda: False, after)
    return f"SIGKILL after {after:.2f} s" if trainer.send(signal.SIGKILL) else None


def killed_in_a_save(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """SIGKILL while a checkpoint is being written."""
    kept, after = rng.randrange(3), rng.uniform(0, 0.1)
    found = trainer.wait_for(lambda: len(trainer.saved()) >= kept and trainer.saving(), LONG)
    time.sleep(after)
    if not found or not trainer.send(signal.SIGKILL):
        return None
    return f"SIGKILL {after * 1e3:.0f} ms into the save after {kept} others"


def terminated(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """SIGTERM at any moment, while it starts and compiles too; started again where it ended with status 143."""
    after = rng.uniform(0, seconds)
    trainer.wait_for(lambda: False, after)
    if not trainer.send(signal.SIGTERM):
        return None
    sent = time.monotonic()
    trainer.wait_for(lambda: False, LONG)
    took = time.monotonic() - sent
    if trainer.status == 128 + signal.SIGTERM:
        trainer.start()
    return f"SIGTERM after {after:.2f} s, which took {took:.2f} s"


def _damaged(trainer: Trainer, rng: random.Random, how: str) -> str | None:
    """SIGKILL once there are two checkpoints, and before the next start a file of the newest is not what it was."""
    kept = 2 + rng.randrange(2)
    found = trainer.wait_for(lambda: len(trainer.saved()) >= kept and not trainer.saving(), LONG)
    if not found or not trainer.send(signal.SIGKILL):
        return None
    folder = trainer.saved()[-1]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    file = rng.choice(files)
    _damage(file, rng, how)
    return f"{how} {folder.name}/{file.relative_to(folder)}"


def _damage(file: Path, rng: random.Random, how: str) -> None:
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content))
    if how == "remove":
        file.unlink()
        return
    if how == "truncate":
        del content[place:]
    elif how == "zero":
        content[place:] = bytes(len(content) - place)
    else:
        content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncated(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    return _damaged(trainer, rng, "truncate")


def zeroed(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    return _damaged(trainer, rng, "zero")


def flipped(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    return _damaged(trainer, rng, "flip")


def removed(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    return _damaged(trainer, rng, "remove")


def filled(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """The disk is full from some moment on, for some seconds."""
    after, full_for = rng.uniform(0, seconds), rng.uniform(1, seconds)
    trainer.wait_for(lambda: False, after)
    if trainer.status is not None:
        return None
    filling = trainer.workdir / "filling"
    for size in (2**20, 2**12, 1):
        with contextlib.suppress(OSError), filling.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(size))
    trainer.wait_for(lambda: False, full_for)
    filling.unlink()
    return f"full after {after:.2f} s, for {full_for:.2f} s"


class Fault(NamedTuple):
    """What is done."""

    do: Callable[[Trainer, random.Random, float], str | None]
    times: int  # --full does it
    disk: int | None = None  # megabytes of the disk that the training has to itself


FAULTS = {
    "kill": Fault(killed, 100), "save": Fault(killed_in_a_save, 50), "term": Fault(terminated, 20),
    "truncate": Fault(truncated, 10), "zero": Fault(zeroed, 10), "flip": Fault(flipped, 10),
    "remove": Fault(removed, 10), "full": Fault(filled, 10, disk=24),
}  # fmt: skip
