"""Copies of records: the same rows, whatever is killed on the way, whoever makes one too, and however full the disk."""

import json
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from refusals import error_of
from tiny_runs import ROOT, SEQUENCE_LENGTH

from colajax.data import local_copy
from colajax.data.loader import Loader
from colajax.data.local_copy import local_copies
from colajax.data.prepare import prepare
from colajax.data.records import Records
from colajax.errors import UserError

# Dies when it has begun to fetch so many files: python -c KILLED FOLDER CACHE FILES.
KILLED = """
import os, signal, sys
from colajax.data import local_copy
fetch, left = local_copy.fetch, [int(sys.argv[3])]
def dying(source, target):
    left[0] -= 1
    if left[0] < 0:
        target.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    fetch(source, target)
local_copy.fetch, local_copy.AT_ONCE = dying, 1
local_copy.local_copies([sys.argv[1]], sys.argv[2])
"""


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    """Records of many shards."""
    out = tmp_path_factory.mktemp("many") / "records"
    prepare([records.parent / "stories.jsonl"], records / "tokenizer.model", out, SEQUENCE_LENGTH,
            validation_fraction=0.2, rows_per_shard=64)  # fmt: skip
    assert len(list(out.glob("*.array_record"))) > 8
    return out


def names(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def fetched(monkeypatch):
    """The names of the files that this process fetches."""
    found, fetch = [], local_copy.fetch
    monkeypatch.setattr(local_copy, "fetch", lambda source, target: found.append(source.name) or fetch(source, target))
    return found


def test_batches_and_what_they_are_called_are_those_of_the_folder(folder, tmp_path, fetched):
    given = ("train", 8, SEQUENCE_LENGTH, 3)
    loader, direct = Loader(folder, *given, cache=tmp_path), Loader(folder, *given)
    np.testing.assert_array_equal(loader.batch(5), direct.batch(5))
    assert (loader.identity, loader.sources) == (direct.identity, direct.sources)
    (copy,) = local_copies([folder], tmp_path)
    assert sorted([*fetched, "metadata.json"]) == names(copy) == names(folder)  # each once
    for name in names(folder):
        if name != "metadata.json":
            assert (copy / name).read_bytes() == (folder / name).read_bytes()
    assert Records.open(copy, "validation").tokenizer()
    Loader(f"((0, {{'{folder}': 1}}),)", *given, cache=tmp_path)
    assert len(fetched) == len(names(folder)) - 1


def test_a_copy_that_was_killed_goes_on(folder, tmp_path, fetched):
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path), "5"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    (copy,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert len(list(copy.glob("*.array_record"))) == 5
    assert not (copy / "metadata.json").exists()
    assert local_copies([folder], tmp_path) == [copy]
    assert len(fetched) == len(names(folder)) - 5 - 1
    assert names(copy) == names(folder)
    np.testing.assert_array_equal(list(Records.open(copy, "train")), list(Records.open(folder, "train")))


def test_of_two_one_copies_and_the_other_waits(folder, tmp_path, monkeypatch, fetched):
    go, waits, found = threading.Event(), threading.Event(), []
    fetch = local_copy.fetch
    monkeypatch.setattr(local_copy, "fetch", lambda *files: go.wait() and fetch(*files))
    both = [threading.Thread(target=lambda: found.append(local_copies([folder], tmp_path, waits.set))) for _ in "ab"]
    for thread in both:
        thread.start()
    assert waits.wait(60)  # nothing has been copied yet: it is the one that waits that says it is alive
    go.set()
    for thread in both:
        thread.join()
    assert found[0] == found[1]
    assert len(fetched) == len(names(folder)) - 1


def test_a_shard_that_is_not_what_the_metadata_says_is_refused(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "source")
    shard = sorted(source.glob("train-*"))[2]
    shard.write_bytes(shard.read_bytes()[:-10])
    message = error_of(local_copies, [source], tmp_path / "cache")
    assert message.startswith(f"{shard}: ")
    assert "metadata.json says" in message
    assert not list((tmp_path / "cache").glob("*/metadata.json"))
    shutil.copy(folder / shard.name, shard)
    (copy,) = local_copies([source], tmp_path / "cache")
    assert names(copy) == names(folder)


def test_records_that_were_prepared_again_are_copied_again(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "source")
    (first,) = local_copies([source], tmp_path / "cache")
    metadata = json.loads((source / "metadata.json").read_text())
    metadata["settings"]["seed"] = 99
    (source / "metadata.json").write_text(json.dumps(metadata))
    (second,) = local_copies([source], tmp_path / "cache")
    assert first != second
    assert Records.open(second, "train").metadata["settings"]["seed"] == 99


def test_a_disk_that_is_too_small_is_told_before_anything_is_copied(folder, tmp_path, monkeypatch, fetched):
    needed = sum(file.stat().st_size for file in folder.glob("*.array_record"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(local_copy.shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    message = error_of(local_copies, [folder], tmp_path / "cache")
    assert message.startswith(f"{tmp_path}/cache: {needed / 1e9:,.2f} GB free, and a copy of {folder} takes ")
    assert fetched == []
    monkeypatch.setattr(local_copy.shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert local_copies([folder], tmp_path / "cache")


def test_a_cache_in_a_bucket_is_refused(folder):
    with pytest.raises(UserError, match=r"records_cache is gs://bucket/cache: expected a folder on a local disk"):
        local_copies([folder], "gs://bucket/cache")
