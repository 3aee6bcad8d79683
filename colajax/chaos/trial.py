"""Trials: a training that a fault is done to, and whether it comes to the end of one that was left alone."""

import contextlib
import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from colajax.chaos.circumstances import ONE_OUTAGE
from colajax.chaos.faults import FAULTS
from colajax.chaos.subject import Subject
from colajax.chaos.trainer import end_all
from colajax.errors import UserError
from colajax.train.stored import open_arrays

LATE = "late"  # the fault came when the training was over: it is tried again
SAME = "same"
PATIENCE = 900.0  # seconds beyond five times those of the reference, after which a trial is called a hang


class Reference(NamedTuple):
    """A training that was left alone."""

    seconds: float  # once it has been compiled, beside others like it
    digest: str


class References:
    """What a subject comes to when it is left alone: tried once for each, but the first one more often."""

    def __init__(self, folder: Path, jobs: int = 1):
        """jobs: trials that run at once."""
        self._folder, self._jobs = folder, jobs
        self._found: dict[Subject, Reference] = {}
        self._lock = threading.Lock()

    def of(self, subject: Subject) -> Reference:
        """Raises UserError where it does not end well, or the first one not always alike."""
        if subject not in self._found:
            with self._lock:
                if not self._found:
                    self._found[subject] = self._first(subject)
                elif subject not in self._found:
                    self._found[subject] = self._left_alone(subject, f"reference-{len(self._found)}")
        return self._found[subject]

    def _first(self, subject: Subject) -> Reference:
        """By itself, which compiles it, and then as many at once as there will be trials."""
        alone = self._left_alone(subject, "reference")
        with ThreadPoolExecutor(self._jobs) as pool:
            beside = list(pool.map(lambda job: self._left_alone(subject, f"reference-0-{job}"), range(self._jobs)))
        if {reference.digest for reference in beside} != {alone.digest}:
            raise UserError(
                f"{self._folder}: left alone, the command came to two ends; nothing can be said of faults"
            )
        return max(beside)

    def _left_alone(self, subject: Subject, name: str) -> Reference:
        trainer, began = subject.start(self._folder, name), time.monotonic()
        try:
            trainer.wait_for(lambda: False, 3600.0)
            seconds = time.monotonic() - began
        finally:
            trainer.end()
        if trainer.status != 0:
            raise UserError(f"{trainer.log}: without any fault the command ended with status {trainer.status}")
        return Reference(seconds, digest_of(trainer.workdir, subject.result))


def digest_of(workdir: epath.Path, result: str) -> str:
    """Of the result and, of a run of colajax, of every number of the last checkpoint."""
    digest = hashlib.sha256((workdir / result).read_bytes())
    if (workdir / "config.json").exists():
        for part in ("params", "opt_state", "frozen"):
            tree = open_arrays(workdir, part=part)[1]
            for path, array in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "read")):
                digest.update(jax.tree_util.keystr(path).encode() + np.asarray(array).tobytes())
    return digest.hexdigest()


def try_fault(fault: str, seed: int, subject: Subject, references: References, folder: Path) -> dict:
    """One trial as JSON values; the workdir and the log of one that did not come to the same end are kept."""
    rng, name = random.Random(f"{fault} {seed}"), f"{fault}-{seed}"
    given = FAULTS[fault].given(subject, rng, folder / name)
    reference = references.of(given.reference)
    with ONE_OUTAGE if given.tried.bucket else contextlib.nullcontext():
        trainer, began = given.tried.start(folder, name), time.monotonic()
        try:
            done = FAULTS[fault].do(trainer, rng, reference.seconds)
            trainer.wait_for(lambda: False, 5 * reference.seconds + PATIENCE)
            status = trainer.status
        finally:
            trainer.end()
        if status is None:
            end = "hang"
        elif status:
            end = f"status {status}"
        else:
            end = SAME if digest_of(trainer.workdir, subject.result) == reference.digest else "another end"
        found = {
            "fault": fault, "seed": seed, "done": done and f"{given.said}{done}",
            "end": LATE if end == SAME and not done else end,
            "seconds": round(time.monotonic() - began, 2), "lost_steps": trainer.lost_steps(),
        }  # fmt: skip
        if end == SAME:
            trainer.clear()
            trainer.log.unlink()
    return found


def trials(
    times: dict[str, int], seed: int, subject: Subject, references: References, folder: Path, *, jobs: int = 1,
    known: Sequence[dict] = (),
) -> Iterator[dict]:  # fmt: skip
    """So many trials of each fault, `jobs` at once, in turn; those that came too late come again, with another seed.
    Known ones are not done again."""
    tried = {(trial["fault"], trial["seed"]) for trial in known}
    hits = Counter(trial["fault"] for trial in known if trial["end"] != LATE)
    seeds = {
        fault: iter([number for number in range(seed, seed + 3 * count + 3) if (fault, number) not in tried])
        for fault, count in times.items()
    }
    running: dict[Future, str] = {}
    pool = ThreadPoolExecutor(jobs)

    def submit(fault: str) -> None:
        if (number := next(seeds[fault], None)) is not None:
            running[pool.submit(try_fault, fault, number, subject, references, folder)] = fault

    try:
        for round_ in range(max(times.values())):
            for fault, count in times.items():
                if round_ < count - hits[fault]:
                    submit(fault)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                fault, found = running.pop(future), future.result()
                if found["end"] == LATE:
                    submit(fault)
                yield found
    finally:  # interrupted, perhaps
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in running):
            end_all()
            time.sleep(0.1)


def table_of(found: list[dict]) -> str:
    """The survival table, in Markdown."""
    head = ("fault", "times", "came to the same end", "most steps done again", "most seconds", "else")
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for fault in dict.fromkeys(trial["fault"] for trial in found):
        mine = [trial for trial in found if trial["fault"] == fault and trial["end"] != LATE]
        ends = Counter(trial["end"] for trial in mine)
        same = ends.pop(SAME, 0)
        others = ", ".join(f"{end}: {count}" for end, count in ends.items()) or "-"
        lost, seconds = (max((trial[key] for trial in mine), default=0) for key in ("lost_steps", "seconds"))
        share = f"{same} ({same / max(len(mine), 1):.0%})"
        rows.append(f"| {fault} | {len(mine)} | {share} | {lost} | {seconds:.0f} | {others} |")
    return "\n".join(rows)
