"""Rows of shards in random access, as fast as a bucket gives them and with few files open.

array_record's data source opens one shard at a time, so that a process which keeps meeting new ones has some thirty
rows a second from a bucket that answers in 30 ms, and it closes none. So this uses its reader, with which that works,
and has another bound on both.
"""

import bisect
import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

from array_record.python.array_record_module import ArrayRecordReader

from colajax.files import in_bucket

# Both of the whole process. A row of a shard that is not open takes two answers of a bucket, one for the index at the
# shard's end: with 30 ms each, 96 at once are 1,600 rows/s.
AT_ONCE = 96  # readers that open a shard or read from it beside each other
OPEN = 96  # that are kept open beyond those: a file each, of a bucket a connection, and the index of the shard's rows
# As the library's data source has them: no more is read than the row.
_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}

_threads = ThreadPoolExecutor(AT_ONCE, "shards")
_lock = threading.Lock()
_idle: list[tuple[str, object, ArrayRecordReader]] = []  # file, whose, reader; the one that was used last is the last


class Shards:
    """The rows of several files, one file's after the other's. Thread-safe."""

    def __init__(self, files: Sequence[str], rows: Sequence[int]):
        """rows: how many each file has. Files are opened when one of their rows is read."""
        self.files, self._ends = files, list(accumulate(rows))
        self._starts = [0, *self._ends[:-1]]
        # A bucket has a request for each row, and a reader that is asked for several a connection for each, for good.
        self._together = 1 if in_bucket(files[0]) else None

    def __len__(self) -> int:
        return self._ends[-1]

    def of(self, index: int) -> int:
        """The number of the file that has this row."""
        return bisect.bisect_right(self._ends, index)

    def begin(self, indices: Sequence[int]) -> Callable[[], list[bytes]]:
        """Begins to read these rows: files beside each other, on a disk each file's in one go, in a bucket one by one.
        What is returned waits for them, and raises RuntimeError with what the library says where one cannot be read."""
        places = defaultdict(list)
        for place, index in enumerate(indices):
            places[self.of(index)].append(place)
        together = self._together or len(indices)
        pieces = [(file, of[at : at + together]) for file, of in places.items() for at in range(0, len(of), together)]
        tasks = [_threads.submit(self._read, file, [indices[place] for place in of]) for file, of in pieces]

        def finish() -> list[bytes]:
            found = [b""] * len(indices)
            for (_, of), task in zip(pieces, tasks, strict=True):
                for place, row in zip(of, task.result(), strict=True):
                    found[place] = row
            return found

        return finish

    def _read(self, file: int, indices: Sequence[int]) -> list[bytes]:
        with _reader(self.files[file], self) as reader:
            return reader.read([index - self._starts[file] for index in indices])


@contextlib.contextmanager
def _reader(file: str, of: Shards) -> Iterator[ArrayRecordReader]:
    """A reader that nobody else has meanwhile; of those that are idle the one that waits longest is closed. One that
    has failed is not used again, as it would fail for ever."""
    with _lock:
        at = next((at for at, entry in enumerate(_idle) if entry[0] == file and entry[1] is of), None)
        reader = None if at is None else _idle.pop(at)[2]
    if reader is None:
        reader = ArrayRecordReader(file, **_OPTIONS)
    yield reader
    with _lock:
        _idle.append((file, of, reader))
        del _idle[:-OPEN]
