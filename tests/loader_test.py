"""Records and batches: every row once an epoch, a batch a function of (seed, step), and damaged folders refused."""

import collections
import itertools
import json
import os
import shutil

import grain
import numpy as np
import pytest
from corpora import make_records
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from colajax.data import shards
from colajax.data.loader import Loader
from colajax.data.records import FEW, Records, ShardWriter, check_tokenizer, read_metadata
from colajax.data.tokenizer import train_sentencepiece
from colajax.errors import UserError

LENGTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 60 or so different rows, 7 a shard."""
    path = tmp_path_factory.mktemp("loader")
    texts = [f"number {i} " + "word " * (i % 9) for i in range(90)]
    return make_records(path, texts, LENGTH, validation_fraction=0.2, rows_per_shard=7)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def _loader(folder, **changes):
    arguments = {"split": "train", "batch_size": 5, "sequence_length": LENGTH, "seed": 3} | changes
    return Loader(folder, **arguments)


def _rows(batches):
    return [tuple(row.tolist()) for batch in batches for row in batch]


def test_each_epoch_has_every_row_once_in_another_order(folder):
    loader = _loader(folder)
    on_disk = _rows([Records.open(folder, "train")])
    assert loader.rows == len(on_disk) == len(set(on_disk)) > 30
    rows = _rows(loader.batch(step) for step in range(3 * loader.rows // 5 + 1))
    epochs = [rows[i * loader.rows : (i + 1) * loader.rows] for i in range(3)]
    for epoch in epochs:
        assert collections.Counter(epoch) == collections.Counter(on_disk)
    assert len({tuple(epoch) for epoch in [on_disk, *epochs]}) == 4


def test_a_batch_is_int32_of_its_shape_even_when_larger_than_an_epoch(folder):
    batch = _loader(folder).batch(0)
    assert (batch.dtype, batch.shape) == (np.int32, (5, LENGTH))
    validation = _loader(folder, split="validation", batch_size=100)
    assert validation.rows < 50
    assert set(_rows([validation.batch(7)])) == set(_rows([Records.open(folder, "validation")]))


@given(step=st.integers(0, 10**7), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_iterating_from_any_step_gives_the_batches_of_those_steps(folder, step, seed):
    loader, other = _loader(folder, seed=seed), _loader(folder, seed=seed)
    iterated = list(itertools.islice(loader.iterate(step), 3))
    for offset in (2, 0, 1):  # in any order, from another loader
        np.testing.assert_array_equal(other.batch(step + offset), iterated[offset])


def test_seeds_differ_and_batch_sizes_share_one_order(folder):
    assert _rows([_loader(folder).batch(0)]) != _rows([_loader(folder, seed=4).batch(0)])
    fives, tens = _loader(folder), _loader(folder, batch_size=10)
    assert _rows([fives.batch(2), fives.batch(3)]) == _rows([tens.batch(1)])


def test_sequential_rows_are_those_on_disk_whatever_the_seed(folder):
    records = Records.open(folder, "validation")
    loader = _loader(folder, split="validation", seed=9)
    np.testing.assert_array_equal(loader.sequential([3, 0, 1]), [records[3], records[0], records[1]])


@given(step=st.integers(0, 10**6), rows=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True))
@settings(max_examples=15, deadline=None)
def test_a_process_reads_its_rows_of_a_batch_and_no_others(folder, step, rows):
    whole, loader = _loader(folder), _loader(folder)
    read, source = [], loader.records
    loader._orders = [grain.MapDataset.range(10**9).map(lambda index: read.append(index) or whole._orders[0][index])]
    np.testing.assert_array_equal(loader.batch(step, rows), whole.batch(step)[rows])
    assert sorted(read) == sorted(step * 5 + row for row in rows)
    assert len(source) == loader.rows
    np.testing.assert_array_equal(next(_loader(folder).iterate(step, rows)), whole.batch(step)[rows])


def test_a_config_that_does_not_fit_the_records_is_told(folder):
    with pytest.raises(UserError, match="rows of 16 tokens, but the config's sequence_length is 32"):
        _loader(folder, sequence_length=32)
    with pytest.raises(UserError, match="batch_size 0"):
        _loader(folder, batch_size=0)
    with pytest.raises(UserError, match="data seed -1"):
        _loader(folder, seed=-1)
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        _loader(folder, split="test")


def test_the_folder_brings_its_tokenizer_and_refuses_another(folder, copy, tmp_path):
    tokenizer = Records.open(folder, "train").tokenizer()
    assert tokenizer.path.parent == folder
    other = train_sentencepiece(["another text"], tmp_path / "other.model", 300)
    check_tokenizer(read_metadata(folder), tokenizer)
    with pytest.raises(UserError, match=r"other\.model: sha256 .* but the records were made with"):
        check_tokenizer(read_metadata(folder), other)
    (copy / "tokenizer.model").write_bytes(other.path.read_bytes())
    with pytest.raises(UserError, match="records were made with"):
        Records.open(copy, "train").tokenizer()


def test_a_damaged_folder_is_refused_by_the_name_of_what_is_wrong(copy):
    shards = sorted(copy.glob("train-*"))
    whole = shards[2].read_bytes()

    def refused(message):
        with pytest.raises(UserError, match=message):
            Records.open(copy, "train")

    shards[2].write_bytes(whole[:-10])
    refused(rf"{shards[2].name}: {len(whole) - 10} bytes, metadata.json says {len(whole)}")
    shards[2].unlink()
    refused(rf"{shards[2].name}: missing")
    shards[2].write_bytes(whole)
    assert len(Records.open(copy, "train")) > 30

    metadata = json.loads((copy / "metadata.json").read_text())
    for change, message in (
        ({"sequence_length": 8}, r"train-00000.*: row 0 of train has 16 tokens, metadata\.json says 8"),
        ({"format_version": 99}, "format_version 99, but this code reads 1, 2, 3;"),
    ):
        (copy / "metadata.json").write_text(json.dumps(metadata | change))
        refused(message)
    metadata["splits"]["train"]["shards"][0]["rows"] = 6
    (copy / "metadata.json").write_text(json.dumps(metadata))
    refused(r"metadata\.json: damaged .*the shards of train have not its \d+ rows")
    del metadata["tokenizer"]["digest"]
    for damaged in ("{", json.dumps(metadata)):
        (copy / "metadata.json").write_text(damaged)
        refused("metadata.json: damaged")
    (copy / "metadata.json").unlink()
    refused("not a records folder")


def test_a_shard_that_is_another_one_is_named_when_a_row_of_it_is_read(copy, tmp_path):
    """The metadata states its length in bytes, so that opening the records does not show it."""
    shards = sorted(copy.glob("train-*"))
    whole = shards[2].read_bytes()
    writer = ShardWriter(epath.Path(tmp_path), "train", 100)
    writer.write(np.zeros((3, LENGTH), np.uint32))
    (few,) = writer.close()
    fewer = (tmp_path / few["file"]).read_bytes()
    wide = ShardWriter(epath.Path(tmp_path), "validation", 100)
    wide.write(np.zeros((7, LENGTH + 1), np.uint32))
    (wider,) = wide.close()
    for other in (bytes(len(whole)), fewer, (tmp_path / wider["file"]).read_bytes()):
        metadata = json.loads((copy / "metadata.json").read_text())
        metadata["splits"]["train"]["shards"][2]["bytes"] = len(other)
        (copy / "metadata.json").write_text(json.dumps(metadata))
        shards[2].write_bytes(other)
        records = Records.open(copy, "train")
        np.testing.assert_array_equal(records.read([0, 13, 21]), [records[0], records[13], records[21]])
        for read in (records.__getitem__, lambda index, records=records: records.read([0, index])):
            with pytest.raises(UserError, match=rf"{shards[2].name}: row 20 of train (is damaged|has 17)") as error:
                read(20)
            assert "\n" not in str(error.value)


def test_a_start_opens_one_shard_and_asks_once_for_the_length_of_each(folder, monkeypatch):
    """However many shards there are: what each costs is one look at its length, several at a time."""
    opened, lengths = [], []
    reader, stat = shards.ArrayRecordReader, os.stat
    monkeypatch.setattr(shards, "ArrayRecordReader", lambda path, **k: opened.append(path) or reader(path, **k))
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: lengths.append(os.fspath(path)) or stat(path, *a, **k))
    records = Records.open(folder, "train")
    files = sorted(str(path) for path in folder.glob("train-*"))
    assert len(files) > 4
    assert opened == files[:1]
    assert sorted(path for path in lengths if "array_record" in str(path)) == files
    batch = records.read(range(len(records)))
    assert sorted(opened) == files  # each once, when it is read
    np.testing.assert_array_equal(batch, list(records))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_damage_anywhere_is_one_line(folder, damaged, seed):
    """Any file of the folder cut, overwritten, lengthened or shortened somewhere: read as it was, or refused."""
    random = np.random.default_rng(seed)
    for file in folder.iterdir():
        shutil.copyfile(file, damaged / file.name)
    file = damaged / sorted(path.name for path in folder.iterdir())[seed % 3]  # metadata, tokenizer, a shard
    blob, at = file.read_bytes(), random.integers(file.stat().st_size)
    length = int(random.integers(40))
    middle = (b"", bytes(random.integers(0, 256, length, np.uint8)))[random.integers(2)]
    file.write_bytes(blob[:at] + middle + (b"", blob[at + length :], blob[at:])[random.integers(3)])
    try:
        for split in ("train", "validation"):
            records = Records.open(damaged, split)
            records.tokenizer()
            assert records.read(range(len(records))).shape == (len(records), LENGTH)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def test_a_flipped_bit_ends_in_one_line_not_in_wrong_tokens(copy):
    shard = sorted(copy.glob("train-*"))[0]
    blob = bytearray(shard.read_bytes())
    blob[200] ^= 1  # in the first rows
    shard.write_bytes(blob)
    with pytest.raises(UserError, match="damaged") as caught:
        list(Records.open(copy, "train"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="damaged"):
        list(itertools.islice(_loader(copy).iterate(0), 20))


def damage_rows(folder, wanted) -> None:
    """Flips a bit of each of these rows, where it damages no other."""
    for row in wanted:
        for file, at in ((file, at) for file in sorted(folder.glob("train-*")) for at in range(64, 800, 16)):
            before = file.read_bytes()
            file.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
            found = Records(folder, "train", read_metadata(folder))
            if not is_whole(found, row) and all(is_whole(found, n) or n in wanted for n in range(len(found))):
                break
            file.write_bytes(before)
        else:
            raise AssertionError(f"nothing damages row {row} alone")


def is_whole(records, row) -> bool:
    try:
        return records[row] is not None
    except UserError:
        return False


def test_damaged_rows_are_skipped_where_that_is_asked_for(copy, capsys):
    """By hand: in place of a row that is damaged the next one, and the first behind the last."""
    whole = np.array(list(Records.open(copy, "train")))
    last = len(whole) - 1
    damage_rows(copy, (1, 2, 6, last))
    records = Records.open(copy, "train", "skip")
    expected = whole.copy()
    expected[[1, 2, 6, last]] = whole[[3, 3, 7, 0]]
    for _ in range(2):
        np.testing.assert_array_equal(records.read(range(len(whole))), expected)
    said = capsys.readouterr().err
    assert said.count("the next one takes its place") == 4
    assert "row 6 of train is damaged" in said
    batches = _loader(copy, damaged="skip").iterate(0)
    assert set(_rows(itertools.islice(batches, 20))) == set(map(tuple, expected.tolist()))
    for refusing in (Records.open(copy, "train"), _loader(copy).records):
        with pytest.raises(UserError, match="row 1 of train is damaged"):
            refusing.read(range(len(whole)))


def test_too_many_damaged_rows_are_not_skipped(copy):
    damage_rows(copy, range(1, FEW + 2))
    records = Records.open(copy, "train", "skip")
    records.read([0, FEW + 2])
    records.read([2])  # on to the first that is whole
    with pytest.raises(UserError, match=rf"{FEW + 1} rows of train: too many to skip"):
        records.read([1])


def test_what_is_away_for_now_is_not_skipped(folder, monkeypatch):
    """As a bucket may be: another process may read it."""
    records = Records.open(folder, "train", "skip")

    def away(*_):
        raise RuntimeError("UNAVAILABLE: 503")

    monkeypatch.setattr(shards.Shards, "_read", away)
    with pytest.raises(UserError, match="503"):
        records.read([3])
