"""Records in a bucket: what is asked of it, how much at once, and what is seen at a start."""

import numpy as np
import pytest
from tiny_runs import SEQUENCE_LENGTH

from colajax.chaos.bucket_server import BUCKET, Requests
from colajax.data.loader import Loader
from colajax.data.local_copy import local_copies
from colajax.data.records import Records
from colajax.data.shards import AT_ONCE
from colajax.errors import UserError


def put(records, folder):
    """The records in the bucket too."""
    for file in records.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def bucket_records(server, records):
    return put(records, BUCKET / "some")


def test_rows_are_read_beside_each_other(server, bucket_records, records):
    """Each by a request of its own, and one for its shard's index; while one is held back the others go on."""
    given = ("train", 24, SEQUENCE_LENGTH, 3)
    loader, local = Loader(bucket_records, *given), Loader(records, *given)
    server.delay, server.most_at_once = 0.2, 0
    try:
        with Requests(server) as reading:
            np.testing.assert_array_equal(loader.batch(0), local.batch(0))
        assert 24 <= reading.count <= 2 * 24
        assert 12 <= server.most_at_once <= AT_ONCE
        server.most_at_once = 0
        batches = loader.iterate(0, range(4))  # of small batches several
        for step in range(3):
            np.testing.assert_array_equal(next(batches), local.batch(step, range(4)))
        assert 4 < server.most_at_once <= AT_ONCE
    finally:
        server.delay = 0


def test_the_rows_of_a_mixture_are_read_beside_each_other(server, bucket_records, records):
    other = put(records, BUCKET / "other")
    given = ("train", 24, SEQUENCE_LENGTH, 3)
    loader = Loader(f"((0, {{'{bucket_records}': 1, '{other}': 1}}),)", *given)
    server.delay, server.most_at_once = 0.2, 0
    try:
        loader.batch(0)
        assert 12 < server.most_at_once <= AT_ONCE
    finally:
        server.delay = 0


@pytest.mark.parametrize("check", [True, False])
def test_one_listing_is_what_a_start_asks_about_shards_or_none(server, bucket_records, check):
    with Requests(server) as opening:
        Records.open(bucket_records, "train", check=check)
    asked = [path for _, path in server.log[-opening.count :]]
    assert sum("prefix=some/&" in path for path in asked) == check
    assert sum("array_record" in path for path in asked) <= 2  # to read the first row


def test_a_shard_has_the_bytes_that_the_metadata_states(records, server):
    folder = put(records, BUCKET / "shorter")
    Records.open(folder, "train")
    shard = next(file for file in folder.iterdir() if file.name.startswith("train-"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{shard.name}: \d+ bytes, metadata\.json says"):
        Records.open(folder, "train")
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: missing"):
        Records.open(folder, "train")


def test_a_copy_asks_once_for_each_file(server, bucket_records, records, tmp_path):
    with Requests(server) as copying:
        (copy,) = local_copies([bucket_records], tmp_path)
    files = [file.name for file in records.iterdir() if file.name != "metadata.json"]
    contents = [path for method, path in server.log[-copying.count :] if method == "GET" and "alt=media" in path]
    assert [sum(name in path for path in contents) for name in files] == [1] * len(files)
    for name in files:
        assert (copy / name).read_bytes() == (records / name).read_bytes()
    assert np.array_equal(list(Records.open(copy, "train")), list(Records.open(records, "train")))
