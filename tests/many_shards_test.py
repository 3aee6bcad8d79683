"""More shards than a process may have files."""

import hashlib
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
from corpora import make_records
from tiny_runs import ROOT

from colajax.data import shards
from colajax.data.loader import Loader, batches_ahead
from colajax.data.records import Records
from colajax.errors import UserError

LENGTH, BATCH, FILES = 16, 50, 256
# A process that may have so many files reads three epochs, and says what: python -c EPOCHS FOLDER FILES BATCH LENGTH.
EPOCHS = """
import hashlib, itertools, resource, sys
folder, *numbers = sys.argv[1:]
files, batch, length = map(int, numbers)
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
from colajax.data.loader import Loader
loader, found = Loader(folder, "train", batch, length, seed=3), hashlib.sha256()
for rows in itertools.islice(loader.iterate(0), 3 * loader.rows // batch):
    found.update(rows.tobytes())
print(found.hexdigest())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of one row a shard."""
    path = tmp_path_factory.mktemp("shards")
    texts = [f"number {i} " + "word " * (i % 9) for i in range(500)]
    out = make_records(path, texts, LENGTH, validation_fraction=0.1, rows_per_shard=1)
    assert len(list(out.glob("train-*"))) > FILES
    return out


def test_a_process_that_may_have_fewer_files_reads_them(folder):
    command = [sys.executable, "-c", EPOCHS, str(folder), *map(str, (FILES, BATCH, LENGTH))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    loader, expected = Loader(folder, "train", BATCH, LENGTH, seed=3), hashlib.sha256()
    for step in range(3 * loader.rows // BATCH):
        expected.update(loader.batch(step).tobytes())
    assert done.stdout.split() == [expected.hexdigest()]


def test_readers_that_are_kept_do_not_grow_with_shards_or_folders(folder):
    for _ in range(3):
        records = Records.open(folder, "train")
        np.testing.assert_array_equal(records.read(range(len(records))), list(records))
        assert len(shards._idle) <= shards.OPEN < len(records)


def test_a_reader_that_has_failed_is_not_used_again(folder, tmp_path):
    """What is away for a time is there again for the same records."""
    records = Records.open(folder, "train")
    file = folder / f"train-00200-of-{len(records):05d}.array_record"
    moved = file.rename(tmp_path / file.name)
    try:
        with pytest.raises(UserError, match=r"train-00200.*row 200 of train .*No such file"):
            records.read([1, 200])
    finally:
        moved.rename(file)
    np.testing.assert_array_equal(records.read([200])[0], records[200])


def test_who_does_not_check_the_shards_meets_one_that_is_not_there_when_it_reads_it(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("colajax.data.records.lengths", lambda folder, names: asked.append(folder) or [0] * len(names))
    loader = Loader(folder, "train", BATCH, LENGTH, seed=3, check=False)
    assert not asked
    assert loader.batch(0).shape == (BATCH, LENGTH)
    with pytest.raises(UserError, match=r"0 bytes, metadata\.json says"):
        Loader(folder, "train", BATCH, LENGTH, seed=3)
    assert asked


@pytest.mark.parametrize("rows", [1, 12, 192, 1536, 10**6])
def test_batches_are_read_ahead_of_who_takes_none_up_to_a_bound_and_no_further(folder, rows, monkeypatch):
    ahead = batches_ahead(rows)
    assert 4 <= ahead <= 16
    assert ahead * rows <= max(2048, 4 * rows)
    if rows > BATCH:
        return
    loader, begun, enough = Loader(folder, "train", BATCH, LENGTH, seed=3), [], threading.Event()

    def batch(step, rows):
        begun.append(int(step))
        if len(begun) == ahead + 1:
            enough.set()
        return np.full((len(rows), LENGTH), step)

    monkeypatch.setattr(loader, "batch", batch)
    batches = loader.iterate(7, range(rows))
    assert next(batches)[0, 0] == 7
    assert enough.wait(60)
    assert sorted(begun) == list(range(7, 7 + ahead + 1))
    assert [int(found[0, 0]) for found in itertools.islice(batches, 5)] == [8, 9, 10, 11, 12]
