"""Records to batches. A batch is a function of (seed, step) alone: there is no state to save and none to lose."""

from collections.abc import Iterator

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

    def __init__(self, records_dir: epath.PathLike, split: str, batch_size: int, sequence_length: int, seed: int):
        """Opens and checks the records (see `Records.open`).

        Args:
            sequence_length: of the model; UserError if the records have another.
            seed: of the order, 0 to 2**32 - 1.
        """
        self.records = Records.open(records_dir, split)
        if (found := self.records.metadata["sequence_length"]) != sequence_length:
            raise UserError(
                f"{records_dir}: rows of {found} tokens, but the config's sequence_length is {sequence_length}; "
                f"change the config or prepare the records again"
            )
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: expected at least 1")
        if not 0 <= seed < 2**32:
            raise UserError(f"data seed {seed}: expected 0 to {2**32 - 1}")
        self._batches = grain.MapDataset.source(self.records).shuffle(seed=seed).repeat().batch(batch_size)

    @property
    def rows(self) -> int:
        """The number of rows in the split: of an epoch."""
        return len(self.records)

    def batch(self, step: int) -> np.ndarray:
        """The batch for the update from `step` to step + 1: int32 [batch_size, sequence_length]."""
        return self._batches[step]

    def iterate(self, start_step: int) -> Iterator[np.ndarray]:
        """batch(start_step), batch(start_step + 1), ..., read ahead by a few threads."""
        read_ahead = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
        yield from self._batches.slice(slice(start_step, None)).to_iter_dataset(read_ahead)

    def sequential(self, count: int) -> np.ndarray:
        """The first `count` rows as they lie on disk: int32 [min(count, rows), sequence_length].

        For evaluation: the same rows whatever seed and batch_size are, all of them where there are fewer than `count`.
        """
        return np.stack([self.records[i] for i in range(min(count, self.rows))])
