"""Records to batches. A batch is a function of (seed, step) alone: there is no state to save and none to lose."""

import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from etils import epath

from colajax.data.records import Records
from colajax.errors import UserError


class Loader:
    """Shuffled batches of one split of a records folder, without end.

    Row k of the run is row k mod `rows` of epoch k div `rows`. An epoch is a permutation of all rows, another one each
    time, so each row comes once in it. Batch `step` is rows step * batch_size onwards, and may span two epochs.
    """

    def __init__(
        self, records_dir: epath.PathLike, split: str, batch_size: int, sequence_length: int, seed: int,
        damaged: str = "stop",
    ):  # fmt: skip
        """Opens and checks the records (see `Records.open`).

        Args:
            sequence_length: of the model; UserError if the records have another.
            seed: of the order, 0 to 2**32 - 1.
            damaged: see `Records.open`.
        """
        self.records = Records.open(records_dir, split, damaged)
        if (found := self.records.metadata["sequence_length"]) != sequence_length:
            raise UserError(
                f"{records_dir}: rows of {found} tokens, but the config's sequence_length is {sequence_length}; "
                f"change the config or prepare the records again"
            )
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: expected at least 1")
        if not 0 <= seed < 2**32:
            raise UserError(f"data seed {seed}: expected 0 to {2**32 - 1}")
        self._batch_size = batch_size
        self._order = grain.MapDataset.range(self.rows).shuffle(seed=seed).repeat()

    @property
    def rows(self) -> int:
        """The number of rows in the split: of an epoch."""
        return len(self.records)

    def batch(self, step: int, rows: Sequence[int] | None = None) -> np.ndarray:
        """The batch for the update from `step` to step + 1, or these rows of it and no others read: int32
        [rows, sequence_length]."""
        return self.records.read(self.rows_of(step, rows))

    def rows_of(self, step: int, rows: Sequence[int] | None = None) -> list[int]:
        """Which rows of the split these are."""
        rows = range(self._batch_size) if rows is None else rows
        return [int(self._order[step * self._batch_size + int(row)]) for row in rows]

    def iterate(
        self, start_step: int, rows: Sequence[int] | None = None,
        failed: Callable[[int, UserError], None] = lambda step, error: None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """batch(start_step, rows), batch(start_step + 1, rows), ..., read ahead by a few threads; failed(step, error)
        is called by one of them where a batch cannot be read, which is before its turn comes to raise that."""

        def read(step: int) -> np.ndarray:
            try:
                return self.batch(step, rows)
            except UserError as error:
                failed(int(step), error)
                raise

        read_ahead = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
        steps = grain.MapDataset.range(start_step, sys.maxsize // self._batch_size)
        yield from steps.map(read).to_iter_dataset(read_ahead)

    def sequential(self, indices: Sequence[int]) -> np.ndarray:
        """Rows as they lie on disk, for evaluation: int32 [len(indices), sequence_length]."""
        return self.records.read([int(index) for index in indices])
