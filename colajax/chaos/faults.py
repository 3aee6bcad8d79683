"""What is done to a training: each fault a function of the trainer, a generator of random numbers and the seconds that
an undisturbed run takes. It says what it did, or None where it came too late."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from colajax.chaos import calls, circumstances
from colajax.chaos.circumstances import Given
from colajax.chaos.subject import Subject
from colajax.chaos.trainer import Trainer

LONG = 600.0  # seconds
NAMED_AT_ONCE = 1.0  # seconds in which trainers that name a checkpoint before it is whole have written it


def killed(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """SIGKILL of any process at any moment."""
    return _sent(signal.SIGKILL, trainer, rng, seconds)


def frozen(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """SIGSTOP of any process at any moment, for good."""
    return _sent(signal.SIGSTOP, trainer, rng, seconds)


def terminated(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """SIGTERM to any process at any moment, while it starts and compiles too, or restores (it comes after a SIGKILL in
    half of the cases); started again after status 143."""
    killed_before = ""
    if rng.random() < 0.5:
        if not (killed_before := killed(trainer, rng, seconds)):
            return None
        trainer.wait_for(lambda: trainer.restarts >= trainer.count and trainer.send(0), LONG)
        killed_before, seconds = f"{killed_before}, ", seconds / 2
    if not (sent := _sent(signal.SIGTERM, trainer, rng, seconds)):
        return None
    began = time.monotonic()
    trainer.wait_for(lambda: trainer.one_ended, LONG)
    trainer.restarts_stopped = True
    return f"{killed_before}{sent}, which took {time.monotonic() - began:.2f} s"


def _sent(number: signal.Signals, trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    after, index = rng.uniform(0, seconds), rng.randrange(trainer.count)
    trainer.wait_for(lambda: False, after)
    if not trainer.send(number, index):
        return None
    return f"{number.name} after {after:.2f} s" + (f" of process {index}" if trainer.count > 1 else "")


def killed_in_a_save(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """SIGKILL while a checkpoint is being written."""
    kept, after = rng.randrange(3), rng.uniform(0, 0.1)
    found = trainer.wait_for(lambda: len(trainer.saved()) >= kept and trainer.saving(), LONG)
    time.sleep(after)
    if not found or not trainer.send(signal.SIGKILL, rng.randrange(trainer.count)):
        return None
    return f"SIGKILL {after * 1e3:.0f} ms into the save after {kept} others"


def killed_at_a_call(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """SIGKILL as it enters a system call by which it saves (see `calls`)."""
    if not trainer.wait_for(lambda: trainer.restarts > 0, LONG):
        return None
    cut = "a save was under way" if trainer.saving() else "no save was under way"
    return f"SIGKILL, {cut}, after {len(trainer.saved())} others"


def _damaged(trainer: Trainer, rng: random.Random, how: str) -> str | None:
    """SIGKILL once there are two checkpoints, and before the next start a file of the newest is not what it was."""
    kept = 2 + rng.randrange(2)
    trainer.wait_for(lambda: len(trainer.saved()) >= kept, LONG)
    time.sleep(NAMED_AT_ONCE)
    found = trainer.wait_for(lambda: not trainer.saving(), LONG)
    if not found or not all(trainer.send(signal.SIGKILL, index) for index in range(trainer.count)):
        return None
    # One that has just begun, of a trainer that names it at once, may have none.
    of_each = [[path for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_size]
               for folder in reversed(trainer.saved())]  # fmt: skip
    if not (files := next(filter(None, of_each), None)):
        return None
    file = rng.choice(sorted(files))
    _damage(file, rng, how)
    return f"{how} {file.relative_to(os.fspath(trainer.checkpoints))}"


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
    filling = Path(trainer.workdir) / "filling"
    for size in (2**20, 2**12, 1):
        with contextlib.suppress(OSError), filling.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(size))
    trainer.wait_for(lambda: False, full_for)
    filling.unlink()
    return f"full after {after:.2f} s, for {full_for:.2f} s"


def away(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """The bucket answers 503."""
    return _without_bucket(trainer, rng, seconds, "unavailable")


def cut(trainer: Trainer, rng: random.Random, seconds: float) -> str | None:
    """The bucket does not answer: connections end."""
    return _without_bucket(trainer, rng, seconds, "cut")


def _without_bucket(trainer: Trainer, rng: random.Random, seconds: float, mode: str) -> str | None:
    """From some moment on, for some seconds."""
    after, away_for = rng.uniform(0, seconds), rng.uniform(1, 60)
    trainer.wait_for(lambda: False, after)
    if trainer.status is not None:
        return None
    server = circumstances.bucket_server()
    server.mode = mode
    trainer.wait_for(lambda: False, away_for)
    server.mode = "pass"
    return f"{mode} after {after:.2f} s, for {away_for:.2f} s"


class Fault(NamedTuple):
    """What is done."""

    do: Callable[[Trainer, random.Random, float], str | None]
    times: int  # --full does it
    given: Callable[[Subject, random.Random, Path], Given] = circumstances.as_it_is
    any_trainer: bool = True  # or a training of colajax alone


FAULTS = {
    "kill": Fault(killed, 100, circumstances.anywhere), "save": Fault(killed_in_a_save, 50),
    "call": Fault(killed_at_a_call, 50, calls.at_a_call), "term": Fault(terminated, 20, circumstances.anywhere),
    "truncate": Fault(truncated, 10), "zero": Fault(zeroed, 10), "flip": Fault(flipped, 10),
    "remove": Fault(removed, 10), "full": Fault(filled, 10, circumstances.small_disk),
    "lost": Fault(killed, 10, circumstances.several_processes, any_trainer=False),
    "frozen": Fault(frozen, 10, circumstances.several_processes, any_trainer=False),
    "away": Fault(away, 5, circumstances.in_a_bucket, any_trainer=False),
    "cut": Fault(cut, 5, circumstances.in_a_bucket, any_trainer=False),
    "nan": Fault(killed, 10, circumstances.nan_batches, any_trainer=False),
    "spike": Fault(killed, 10, circumstances.spiking_batches, any_trainer=False),
    "record": Fault(killed, 20, circumstances.damaged_rows, any_trainer=False),
}  # fmt: skip
