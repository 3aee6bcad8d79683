"""The updates of a run: the batch that each takes, how many are under way at once, and what becomes of a run when some
are not sound.

An update whose loss or gradient is no number, or far above what they were, is not applied: the device decides
(`step.make_train_step`), the host learns of it when the update is done, and the next batch takes its place. The update
that leads from step s has batch s + skipped, so that a run ends as one does whose data never had the others.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from colajax.data.loader import Loader
from colajax.errors import UserError
from colajax.parallel.agreement import from_first, share_errors
from colajax.parallel.batch import global_batch, local_rows
from colajax.train.aside import set_later_aside
from colajax.train.checkpoint import facts_of, previous_step
from colajax.train.optimizer import Optimizer
from colajax.train.setup import Run
from colajax.train.state import TrainState
from colajax.train.step import make_train_step, watched

# Updates that may be under way at once. JAX would begin some thirty, and a machine that is told to end in 30 seconds
# would spend them on those before it could save.
AHEAD = 2
WINDOW = 128  # updates that the next one is judged by
LEAST = 64  # of them, or it is not judged yet


class Applied(NamedTuple):
    """An update that is part of the run."""

    step: int  # that it led to
    trainable: tuple[str, ...]
    means: dict  # on the devices


class Skipped(NamedTuple):
    """An update that is not."""

    begins: int  # step that it would have led on from
    batch: int  # its number
    rows: list[int]  # of the training split, in the batch's order
    means: dict[str, float]  # of `step.watched`
    limits: dict[str, float]
    began_at: int  # step that this process has come from: its start, or where it went back to
    began_with: int  # number of the batch that it took there


class _Update(NamedTuple):
    begins: int
    trainable: tuple[str, ...]
    local: np.ndarray  # this process's rows of the batch
    limits: dict[str, float]
    means: dict  # on the devices


class Limits:
    """What the loss and the gradients' norms of an update may be: their mean over the last WINDOW updates and `sigmas`
    times their standard deviation; without bounds where sigmas is 0, or fewer than LEAST are known.

    The last AHEAD updates before it are left out, or the limits would be another where the host has seen less of what
    its devices have done."""

    def __init__(self, sigmas: float, facts: dict):
        """facts: those of the checkpoint from which a run goes on."""
        self._sigmas = sigmas
        self._recent = {
            name: deque(map(tuple, pairs), WINDOW + AHEAD) for name, pairs in facts.get("recent", {}).items()
        }

    def facts(self) -> dict:
        """What a checkpoint has to say for a run that goes on from it."""
        return {"recent": {name: list(pairs) for name, pairs in self._recent.items()}} if self._sigmas else {}

    def add(self, step: int, means: dict[str, float]) -> None:
        """The means of the update that led to `step`."""
        for name, value in means.items():
            self._recent.setdefault(name, deque(maxlen=WINDOW + AHEAD)).append((step, float(value)))

    def of(self, names: tuple[str, ...], begins: int) -> dict[str, np.float32]:
        return {name: np.float32(self._limit(name, begins)) for name in names}

    def _limit(self, name: str, begins: int) -> float:
        known = [value for step, value in self._recent.get(name, ()) if step <= begins - AHEAD][-WINDOW:]
        if not self._sigmas or len(known) < LEAST:
            return math.inf
        return float(np.mean(known) + self._sigmas * np.std(known))


class Updates:
    """Of a run; every process has one and calls it alike, `begin_at` first.

    state: as the updates begun so far leave it; begun: its step, if all of them are applied."""

    def __init__(self, config, stage, optimizer: Optimizer, like: TrainState, loader: Loader):
        self._config, self._stage, self._loader, self._mesh = config, stage, loader, like.step.sharding.mesh
        self._train_step = make_train_step(
            stage, optimizer, like, seed=config.seed, parts=config.accumulation_steps,
            reduction=config.gradient_reduction,
        )  # fmt: skip
        self._went_back_to = None
        self._unreadable, self._stop = None, lambda: None

    def begin_at(self, step: int, state: TrainState, facts: dict, batch: int | None = None) -> None:
        """facts: of the checkpoint of `step`; batch: the number of the next one, where it is not the checkpoint's."""
        self.begun, self.state, self._in_a_row = step, state, 0
        self.skipped = facts.get("skipped", 0) if batch is None else batch - step
        self._began = {"began_at": step, "began_with": step + self.skipped}
        self._limits = Limits(self._config.spike_sigmas, facts)
        self._under_way, self._again = deque(), deque()
        rows = local_rows(self._mesh, self._config.batch_size)
        self._batches = self._loader.iterate(step + self.skipped, rows, self._cannot_read)

    def facts(self) -> dict:
        """What a checkpoint has to say of the updates that led to it."""
        return {"skipped": self.skipped} | self._limits.facts()

    def _cannot_read(self, batch: int, error: UserError) -> None:
        if batch < self._config.total_steps + self.skipped:  # it reads ahead of the last one too
            self._unreadable = error
            self._stop()

    def read_first(self, stop: Callable[[], None]) -> None:
        """The batch that comes next, for `next_batch`; where a process cannot read it, this fails in all. stop() asks
        for the end of the run, in all processes after the same update: for data of later ones that cannot be read."""
        self._stop = stop
        self._again.append(share_errors(lambda: next(self._batches)))

    def check_readable(self) -> None:
        """Raises UserError, in every process, where one could not read its data."""

        def check():
            if self._unreadable:
                raise self._unreadable

        share_errors(check)

    def next_batch(self) -> np.ndarray:
        """This process's rows of the batch that the next update takes."""
        return self._again.popleft() if self._again else next(self._batches)

    def begin(self, local: np.ndarray) -> None:
        """Begins the update from step `begun` on."""
        trainable = self._stage.trainable(self.begun)
        limits = self._limits.of(watched(self._stage, trainable), self.begun)
        tokens = global_batch(self._mesh, local, self._config.batch_size)
        self.state, means = self._train_step(self.state, tokens, np.int32(self.begun), limits, trainable)
        self._under_way.append(_Update(self.begun, trainable, local, limits, means))
        self.begun += 1

    def settled(self, under_way: int) -> Iterator[Applied | Skipped]:
        """Waits until no more than so many updates are under way, and yields those that are done; after one that was
        skipped, `begun` is the step that it began from again."""
        while len(self._under_way) > under_way:
            update = self._under_way.popleft()
            found = jax.device_get({name: update.means[name] for name in ("applied", *update.limits)})
            if found.pop("applied"):
                self._in_a_row = 0
                self._limits.add(update.begins + 1, found)
                del update.means["applied"]
                yield Applied(update.begins + 1, update.trainable, update.means)
            else:
                yield self._skip(update, found)

    def _skip(self, update: _Update, found: dict) -> Skipped:
        """Those begun after it were not applied either, as they began from a step that was not reached."""
        self._again.extendleft(later.local for later in reversed(self._under_way))
        self._under_way.clear()
        batch = update.begins + self.skipped
        self.begun, self.skipped, self._in_a_row = update.begins, self.skipped + 1, self._in_a_row + 1
        means = {name: float(found[name]) for name in update.limits}
        limits = {name: float(limit) for name, limit in update.limits.items()}
        return Skipped(update.begins, batch, self._loader.rows_of(batch), means, limits, **self._began)

    @property
    def stuck(self) -> bool:
        """Whether so many updates in a row were skipped that it is the state which is not sound."""
        return self._in_a_row >= self._config.skips_in_a_row

    def go_back(self, run: Run) -> int | None:
        """Goes on from the newest checkpoint after which an update was sound, past the batches since; later ones are
        moved to WORKDIR/damaged. Returns its step, or None where there is none since it went back before."""
        batch = self.begun + self.skipped
        run.checkpoints.wait()
        step = from_first(lambda: previous_step(run.workdir, self.begun))
        if step is None or (self._went_back_to is not None and step <= self._went_back_to):
            return None
        from_first(lambda: set_later_aside(run.workdir, step))
        run.checkpoints.reload()
        facts = share_errors(lambda: facts_of(run.workdir, step))
        self.begin_at(step, run.checkpoints.restore(step, run.like), facts, batch)
        self._went_back_to = step
        return step
