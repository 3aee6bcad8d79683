"""Records to batches. A batch is a function of (seed, step) alone: there is no state to save and none to lose."""

import bisect
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import grain
import numpy as np
from etils import epath

from colajax.data.local_copy import local_copies
from colajax.data.mixture import Interleaving, Sources, folders_of, identity_of, names_of, schedule_of
from colajax.errors import UserError


def batches_ahead(rows: int) -> int:
    """How many batches of so many rows are being read, or wait to be taken, at once.

    As soon as one is taken the next is begun, so that a consumer who never waits has no more read than it takes, and
    one who does has `shards.AT_ONCE` shards read at any time. Rows are bounded, and with them memory: 2,048 of 512
    tokens are 4 MB, and what a v5p-512 of eight processes takes in two seconds, which a bucket may be slow.
    """
    return max(4, min(16, 2048 // rows))


class Loader:
    """Shuffled batches of one split of a records folder, or of a mixture of several, without end.

    Of a folder, row k of the run is row k mod `rows` of epoch k div `rows`. An epoch is a permutation of all rows,
    another one each time, so each row comes once in it. Batch `step` is rows step * batch_size onwards, and may span
    two epochs. In a mixture the rows of a batch are of its sources in turn, by their weights; each source has its own
    epochs, and where weights change it goes on where it was.
    """

    def __init__(
        self, records: epath.PathLike, split: str, batch_size: int, sequence_length: int, seed: int,
        damaged: str = "stop", *, check: bool = True, cache: epath.PathLike = "",
    ):  # fmt: skip
        """Opens and checks the records (see `Records.open`).

        Args:
            records: a folder, or a schedule of weights (see `mixture`).
            sequence_length: of the model; UserError if the records have another.
            seed: of the order, 0 to 2**32 - 1.
            damaged, check: see `Records.open`.
            cache: a folder from whose copies the records are read, see `local_copies`; "" for none.
        """
        schedule = schedule_of(records)
        folders = folders_of(schedule)
        self.records = Sources(local_copies(folders, cache) if cache else folders, split, damaged, check=check)
        if (found := self.records.metadata["sequence_length"]) != sequence_length:
            raise UserError(
                f"{folders[0]}: rows of {found} tokens, but the config's sequence_length is {sequence_length}; "
                f"change the config or prepare the records again"
            )
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: expected at least 1")
        if not 0 <= seed < 2**32:
            raise UserError(f"data seed {seed}: expected 0 to {2**32 - 1}")
        self._batch_size, self._names = batch_size, names_of(folders)
        self.identity = identity_of(schedule, dict(zip(folders, self.records.digests, strict=True)))
        self._orders = [grain.MapDataset.range(len(rows)).shuffle(seed=seed).repeat() for rows in self.records.rows]
        # Of each entry: the row of the run with which it begins, its interleaving, and what each source has had before.
        self._starts = [entry.step * batch_size for entry in schedule]
        self._entries = [Interleaving([entry.weights.get(folder, 0) for folder in folders]) for entry in schedule]
        self._had = [np.zeros(len(folders), np.int64)]
        for number, (start, later) in enumerate(pairwise(self._starts)):
            self._had.append(self._had[number] + self._entries[number].counts(later - start))

    @property
    def rows(self) -> int:
        """The number of rows in the split: of an epoch."""
        return len(self.records)

    @property
    def sources(self) -> dict[str, range]:
        """The rows of each source, by its name."""
        return dict(zip(self._names, self.records.rows, strict=True))

    def shares(self, step: int) -> dict[str, float]:
        """Of each source, by its name, in the batches from `step` on."""
        counts = self._entries[self._entry_of(step * self._batch_size)].weights
        return {name: float(weight / counts.sum()) for name, weight in zip(self._names, counts, strict=True)}

    def epochs(self, step: int) -> dict[str, float]:
        """How often each source, by its name, has been gone through in the batches before `step`."""
        entry = self._entry_of(row := step * self._batch_size)
        had = self._had[entry] + self._entries[entry].counts(row - self._starts[entry])
        return {name: float(count / len(rows)) for (name, rows), count in zip(self.sources.items(), had, strict=True)}

    def batch(self, step: int, rows: Sequence[int] | None = None) -> np.ndarray:
        """The batch for the update from `step` to step + 1, or these rows of it and no others read: int32
        [rows, sequence_length]."""
        return self.records.read(self.rows_of(step, rows))

    def rows_of(self, step: int, rows: Sequence[int] | None = None) -> list[int]:
        """Which rows of the split these are."""
        rows = range(self._batch_size) if rows is None else rows
        return [self._row(step * self._batch_size + int(row)) for row in rows]

    def _row(self, row: int) -> int:
        entry = self._entry_of(row)
        source, had = self._entries[entry].at(row - self._starts[entry])
        return self.records.rows[source].start + int(self._orders[source][int(self._had[entry][source]) + had])

    def _entry_of(self, row: int) -> int:
        return bisect.bisect_right(self._starts, row) - 1

    def iterate(
        self, start_step: int, rows: Sequence[int] | None = None,
        failed: Callable[[int, UserError], None] = lambda step, error: None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """batch(start_step, rows), batch(start_step + 1, rows), ..., read ahead (see `batches_ahead`); failed(step,
        error) is called by another thread where a batch cannot be read, before its turn comes to raise that."""

        def read(step: int) -> np.ndarray:
            try:
                return self.batch(step, rows)
            except UserError as error:
                failed(int(step), error)
                raise

        ahead = batches_ahead(self._batch_size if rows is None else len(rows))
        read_ahead = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
        steps = grain.MapDataset.range(start_step, sys.maxsize // self._batch_size)
        yield from steps.map(read).to_iter_dataset(read_ahead)

    def sequential(self, indices: Sequence[int]) -> np.ndarray:
        """Rows as they lie on disk, for evaluation: int32 [len(indices), sequence_length]."""
        return self.records.read([int(index) for index in indices])
