"""Shows how fast one process reads its rows, from a disk and from a bucket, and what of a pod's appetite that is.

python tools/measure_loader.py [--shards N] [--rows N] [--steps N] [--delay S] [--processes N ...]

Writes N shards of random rows to $TMPDIR, and to a bucket server of its own, which holds each request back for S
seconds. Then processes, one after another, read their share of N batches from either as fast as they can: that of one
of 128, 64 and 8 processes, and the first of these row by row, without reading ahead. Needs colajax[test].
"""

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import NamedTuple

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

import numpy as np
from etils import epath

from colajax.chaos.bucket_server import BUCKET, BucketServer, Requests
from colajax.data.loader import Loader, batches_ahead
from colajax.data.records import FORMAT_VERSION, ShardWriter
from colajax.errors import UserError, run_main
from colajax.files import write_whole

LENGTH, BATCH = 512, 1536  # tokens a row, rows of the global batch
POD = 3.4e6  # tokens/s that a v5p-512 trains on
HEAD = (
    "from     processes  batch  rows/s  tokens/s  times its share  requests a row  opened in  open files  memory, MB"
)


class Measured(NamedTuple):
    """What a process has seen of itself: seconds, rows in them and with those read before and ahead, files, MB at the
    first batch and at the last."""

    opening: float
    reading: float
    rows: int
    read: int
    files: int
    before: float
    after: float


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--shards", type=int, default=1000, metavar="N")
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="of a shard")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="batches that are read")
    parser.add_argument("--delay", type=float, default=0.03, metavar="S", help="of every request to the bucket")
    parser.add_argument("--processes", type=int, nargs="+", default=(128, 64, 8), metavar="N")
    args = parser.parse_args()
    for name in ("shards", "rows", "steps"):
        if not 1 <= vars(args)[name] < 2**31:
            raise UserError(f"--{name} {vars(args)[name]}: expected at least 1")
    if not 0 <= args.delay <= 10:
        raise UserError(f"--delay {args.delay}: expected 0 to 10 seconds")
    for processes in args.processes:
        if processes < 1 or BATCH % processes:
            raise UserError(f"--processes {processes}: expected a number that divides {BATCH}")
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        server = BucketServer()
        try:
            os.environ.update(server.environment | {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "NO_GCE_CHECK": "true"})
            disk = epath.Path(folder) / "records"
            write(disk, args.shards, args.rows)
            upload(disk, BUCKET / "records")
            server.delay = args.delay
            print(HEAD)
            for line in table(server, disk, args.processes, args.steps):
                print(line, flush=True)
        finally:
            server.close()


def write(folder: epath.Path, shards: int, rows: int) -> None:
    """Records of random rows."""
    folder.mkdir()
    rng, writer = np.random.default_rng(0), ShardWriter(folder, "train", rows)
    for _ in range(shards):
        writer.write(rng.integers(0, 32768, (rows, LENGTH), np.uint32))
    train = {"rows": shards * rows, "shards": writer.close()}
    tokenizer = {"digest": "none", "file": "tokenizer.json", "vocab_size": 32768, "pad_id": 0, "eos_id": 1}
    metadata = {"format_version": FORMAT_VERSION, "sequence_length": LENGTH, "tokenizer": tokenizer, "settings": {},
                "source": [], "splits": {"train": train}}  # fmt: skip
    write_whole(folder / "metadata.json", json.dumps(metadata))


def upload(folder: epath.Path, target: epath.Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: (target / file.name).write_bytes(file.read_bytes()), folder.iterdir()))


def table(server: BucketServer, disk: epath.Path, counts: list[int], steps: int) -> Iterator[str]:
    """A line for each place and number of processes."""
    for name, folder in (("disk", disk), ("bucket", BUCKET / "records")):
        for processes, alone in ((counts[0], True), *((count, False) for count in counts)):
            rows = BATCH // processes
            wanted = min(steps, max(1, 200 // rows)) if alone else steps  # or it would be there for minutes
            with Requests(server) as requests, fresh_process() as process:
                found = process.submit(measure, os.fspath(folder), rows, wanted, alone).result()
            rate = found.rows / found.reading
            yield (
                f"{name:7}  {processes:9}  {'alone' if alone else rows:>5}  {rate:6,.0f}  {rate * LENGTH:9,.0f}  "
                f"{rate * LENGTH * processes / POD:15.1f}  {requests.count / found.read:14.2f}  "
                f"{found.opening:7.2f} s  {found.files:10}  {found.before:,.0f}, {found.after:,.0f}"
            )


def fresh_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def measure(folder: str, rows: int, steps: int, alone: bool) -> Measured:
    """alone: each row when the one before it is there, by `Records[i]`."""
    began = time.perf_counter()
    loader = Loader(folder, "train", BATCH, LENGTH, seed=0)
    opening = time.perf_counter() - began
    batches = loader.iterate(0, range(rows)) if not alone else one_by_one(loader, rows)
    ahead = 0 if alone else batches_ahead(rows)
    for _ in range(1 + 2 * ahead):  # until it is what is read that is taken, and not what was
        next(batches)
    before, began = memory(), time.perf_counter()
    for _ in range(steps):
        next(batches)
    reading, read = time.perf_counter() - began, 1 + 3 * ahead + steps
    files = len(os.listdir("/proc/self/fd"))
    return Measured(opening, reading, rows * steps, rows * read, files, before, memory())


def one_by_one(loader: Loader, rows: int) -> Iterator[np.ndarray]:
    step = 0
    while True:
        yield np.concatenate([loader.records.read([index]) for index in loader.rows_of(step, range(rows))])
        step += 1


def memory() -> float:
    """MB of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    run_main(main)
