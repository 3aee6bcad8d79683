"""tools/inspect_records.py, against what the rows are made of."""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from command_lines import run
from corpora import make_records
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from colajax.data.inspection import LONG, bins_of, pieces_of, stats_of
from colajax.data.records import Records, ShardWriter

LENGTH, PAD, EOS = 48, 0, 1


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(1)
    words = ("Anna", "the", "river", "found", "a", "lamp", "and", "went", "home", "with", "Tom")
    return [f"number {i}: " + " ".join(rng.choice(words, rng.integers(1, 40))) for i in range(120)]


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("inspection")
    return make_records(path, texts, LENGTH, validation_fraction=0.2)


DOCUMENTS = st.lists(st.lists(st.integers(2, 9), max_size=6), max_size=6)


@given(documents=DOCUMENTS, ends=st.booleans(), pad=st.integers(0, 5))
def test_pieces_are_the_documents_of_a_row(documents, ends, pad):
    documents = [document for document in documents if document] if not ends else documents
    row, starts = [], []
    for number, document in enumerate(documents, 1):
        starts.append(len(row))
        row += document + ([EOS] if ends or number < len(documents) else [])
    found = list(pieces_of(np.array(row + [PAD] * pad, int), EOS, PAD))
    assert [piece.tokens.tolist() for piece in found] == documents
    assert [piece.start for piece in found] == starts
    assert [piece.ends for piece in found] == [True] * (len(documents) - 1) + [ends] * bool(documents)


def test_stats_are_those_of_the_documents(folder):
    records = Records.open(folder, "train")
    tokenizer, split = records.tokenizer(), records.metadata["splits"]["train"]
    found = stats_of(records, 10**6)
    rows = [records[i].tolist() for i in range(len(records))]
    assert (found.rows, found.entries) == (len(rows), len(rows) * LENGTH)
    assert found.tokens == Counter(token for row in rows for token in row if token != tokenizer.pad_id)
    assert found.tokens.total() == split["tokens"]
    assert found.tokens[tokenizer.eos_id] == split["documents"] == found.lengths.total() - found.unended
    assert sum(length * count for length, count in found.lengths.items()) == split["tokens"] - split["documents"]
    assert sum(count for length, count in found.lengths.items() if length >= LONG) == found.digests.total()
    assert stats_of(records, 7).rows == 7
    bins = bins_of(found.lengths)
    assert sum(count for *_, count in bins) == found.lengths.total()
    for low, high, count in bins:
        assert count == sum(n for length, n in found.lengths.items() if low <= length <= high)
    assert bins_of(Counter()) == []


def test_a_row_is_shown_as_its_documents(folder, texts):
    status, out, errors = run("inspect_records", [str(folder), "--row", "1", "--split", "validation"])
    assert (status, errors) == (0, "")
    shown = [text for text in re.split(r"(?m)^\[.*\]\n?", out) if text.strip()]
    assert shown
    whole = [text.strip() for text in shown if text.strip() in texts]
    assert whole  # a text in full
    assert all(any(text.strip() in of for of in texts) for text in shown)
    status, _, errors = run("inspect_records", [str(folder), "--row", "100000"])
    assert (status, errors.count("\n")) == (2, 1)
    assert "train has rows 0 to" in errors


def test_what_both_splits_have_is_counted(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    train, metadata = Records.open(folder, "train"), json.loads((folder / "metadata.json").read_text())
    tokenizer = metadata["tokenizer"]
    chosen = [train[i] for i in (0, 3)]
    held_out = [Records.open(folder, "validation")[i] for i in range(4)]
    writer = ShardWriter(epath.Path(copy), "validation", 100)
    writer.write(np.stack(held_out + chosen))
    metadata["splits"]["validation"] |= {"rows": 6, "shards": writer.close()}
    (copy / "metadata.json").write_text(json.dumps(metadata))
    shared = [piece for row in chosen for piece in pieces_of(row, tokenizer["eos_id"], tokenizer["pad_id"])]
    count = sum(len(piece.tokens) >= LONG for piece in shared)
    assert count > 0
    status, out, errors = run("inspect_records", [str(copy), "--stats", "--out", str(tmp_path / "lengths.png")])
    assert (status, errors) == (0, "")
    assert f"in both splits: {count} of " in out
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "in both splits: 0 of " in run("inspect_records", [str(folder), "--stats"])[1]


def test_the_summary_is_that_of_the_metadata(folder):
    status, out, _ = run("inspect_records", [str(folder)])
    train = json.loads((folder / "metadata.json").read_text())["splits"]["train"]
    assert status == 0
    assert f"train: {train['rows']:,} rows in 1 shards, {train['documents']} documents, {train['tokens']:,} tok" in out
