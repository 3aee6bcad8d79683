"""Where a fault meets a training, and which training, left alone, it is to come to the end of."""

import atexit
import functools
import itertools
import json
import os
import random
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from colajax.chaos.subject import Subject
from colajax.data.records import ShardWriter, read_metadata

RECORDS = "--config.records="
BUCKET = "gs://bucket"
ONE_OUTAGE = threading.Lock()  # of the bucket, which all trials that have one share


class Given(NamedTuple):
    """A training that a fault is done to."""

    tried: Subject
    reference: Subject  # one that nothing is done to, with the same end
    said: str = ""


def as_it_is(subject: Subject, rng: random.Random, name: Path) -> Given:
    """name: of the trial, a path that is free with anything behind it; so for all that follow."""
    return Given(subject, subject)


def anywhere(subject: Subject, rng: random.Random, name: Path) -> Given:
    """A training of colajax as it is, in one of ten cases with several processes and in one of ten in a bucket."""
    where = rng.choice((*[as_it_is] * 8, several_processes, in_a_bucket))
    return (where if "colajax.train" in subject.command else as_it_is)(subject, rng, name)


def small_disk(subject: Subject, rng: random.Random, name: Path) -> Given:
    return Given(subject._replace(disk=24), subject)


def several_processes(subject: Subject, rng: random.Random, name: Path) -> Given:
    """Two, if the subject has one; those that are left over end soon, where they wait for another."""
    several = subject._replace(processes=max(2, subject.processes))
    return Given(several.with_(hang_seconds=150), several, f"{several.processes} processes, ")


def in_a_bucket(subject: Subject, rng: random.Random, name: Path) -> Given:
    """Whose end is that of one on local disk."""
    with ONE_OUTAGE:
        bucket_server()
    return Given(subject._replace(bucket=BUCKET), subject, "in a bucket, ")


@functools.cache
def bucket_server():
    """For this process and all that it starts from here on."""
    from colajax.chaos.bucket_server import BucketServer  # of the tests' packages

    server = BucketServer(BUCKET.removeprefix("gs://"))
    atexit.register(server.close)
    os.environ.update(server.environment | {"NO_GCE_CHECK": "true", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"})
    return server


def nan_batches(subject: Subject, rng: random.Random, name: Path) -> Given:
    """Batches whose loss is NaN, up to four of the first fifty: as if the data never had them."""
    return _unsound(subject, "nan", _some(range(50), rng))


def spiking_batches(subject: Subject, rng: random.Random, name: Path) -> Given:
    """Whose loss is a hundred times what it would be, in a run that has seen enough to tell."""
    return _unsound(subject.with_(total_steps=100, spike_sigmas=8), "100", _some(range(70, 95), rng))


def _some(batches: range, rng: random.Random) -> str:
    return ",".join(map(str, sorted(rng.sample(batches, rng.randint(1, 4)))))


def _unsound(subject: Subject, factor: str, batches: str) -> Given:
    at = subject.command.index("colajax.train")

    def of(how: str) -> Subject:
        program = ("colajax.chaos.unsound", factor, how, batches)
        return subject._replace(command=(*subject.command[:at], *program, *subject.command[at + 1 :]))

    return Given(of("with"), of("without"), f"batches {batches} x {factor}, ")


def damaged_rows(subject: Subject, rng: random.Random, name: Path) -> Given:
    """Some rows of the records are not what was written: as if each were the next one that is whole."""
    at, word = next((at, word) for at, word in enumerate(subject.command) if word.startswith(RECORDS))

    def on(records: Path) -> Subject:
        return subject._replace(command=(*subject.command[:at], f"{RECORDS}{records}", *subject.command[at + 1 :]))

    damaged, mended = Path(f"{name}-damaged"), Path(f"{name}-mended")
    rows = damage_rows(Path(word.removeprefix(RECORDS)), damaged, mended, rng)
    return Given(on(damaged).with_(damaged_rows="skip"), on(mended), f"rows {', '.join(map(str, rows))} damaged, ")


def damage_rows(records: Path, damaged: Path, mended: Path, rng: random.Random) -> list[int]:
    """Copies of the records: one in which bits of up to five rows of the first shard are others, and one with the next
    whole row in place of each. Returns which they are."""
    metadata = read_metadata(records)
    file = metadata["splits"]["train"]["shards"][0]["file"]
    content = (records / file).read_bytes()
    shutil.copytree(records, damaged, dirs_exist_ok=True)  # of a trial that was interrupted
    while True:
        changed = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(content) * 3 // 5)] ^= 1 << rng.randrange(8)  # behind it is the index
        (damaged / file).write_bytes(changed)
        found = _rows(damaged, metadata)
        bad = [number for number, row in enumerate(found) if row is None]
        if 1 <= len(bad) <= 5:
            break
    whole = [next(row for row in itertools.islice(itertools.cycle(found), at, None) if row is not None)
             for at in range(len(found))]  # fmt: skip
    shutil.copytree(records, mended, dirs_exist_ok=True)
    writer = ShardWriter(epath.Path(mended), "train", max(s["rows"] for s in metadata["splits"]["train"]["shards"]))
    writer.write(np.stack([np.frombuffer(row, "<u4") for row in whole]))
    metadata["splits"]["train"]["shards"] = writer.close()
    (mended / "metadata.json").write_text(json.dumps(metadata))
    return bad


def _rows(records: Path, metadata: dict) -> list[bytes | None]:
    """Each row of the training split, or None where its library does not give it."""
    found = []
    for shard in metadata["splits"]["train"]["shards"]:
        source = ArrayRecordDataSource([f"{records / shard['file']}[0:{shard['rows']}]"])
        for row in range(shard["rows"]):
            try:
                found.append(source[row])
            except RuntimeError:
                found.append(None)
    return found
