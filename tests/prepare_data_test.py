"""Text to records: what comes out against the text that went in, and the command lines on bad input."""

import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from colajax.data import prepare as prepare_module
from colajax.data.packing import sections
from colajax.data.prepare import prepare
from colajax.data.records import Records
from colajax.data.tokenizer import train_sentencepiece
from colajax.errors import UserError

ROOT = Path(__file__).parent.parent
WORDS = ["the", "river", "was", "cold", "and", "she", "<pad>", "</s>", "日本", "said:\n", "\n\n", "  "]
DOCUMENTS = [" ".join(random.Random(i).choices(WORDS, k=20 + i)) + f" {i}." for i in range(120)]
LONG = "\n\n".join(" ".join(random.Random(i).choices(WORDS, k=300)) for i in range(90))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    (folder / "b.txt").write_text(LONG)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_sentencepiece(DOCUMENTS, tmp_path_factory.mktemp("tokenizer") / "t.model", 350)


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _tool(name, *arguments):
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _pieces(rows, tokenizer):
    """The text of every whole document or piece in the rows: what stands between end-of-text tokens."""
    texts = []
    for row in rows:
        ids = row.tolist()
        assert tokenizer.eos_id in ids or tokenizer.pad_id not in ids
        while tokenizer.eos_id in ids:
            end = ids.index(tokenizer.eos_id)
            texts.append(tokenizer.decode(ids[:end]))
            ids = ids[end + 1 :]
        assert set(ids) <= {tokenizer.pad_id} or tokenizer.pad_id not in ids
    return texts


def test_short_documents_come_back_word_for_word_each_in_one_split(corpus, tokenizer, tmp_path):
    metadata = prepare([corpus / "a.jsonl"], tokenizer.path, tmp_path / "r", 512, validation_fraction=0.2)
    found = {name: _pieces(Records.open(tmp_path / "r", name), tokenizer) for name in ("train", "validation")}
    assert sorted(found["train"] + found["validation"]) == sorted(DOCUMENTS)
    for name, split in metadata["splits"].items():
        assert split["documents"] == len(found[name])
        assert split["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in found[name])
        assert split["padding_share"] == pytest.approx(1 - split["tokens"] / (split["rows"] * 512))
        assert split["cut_share"] == 0
    assert 0.1 < len(found["validation"]) / len(DOCUMENTS) < 0.3

    # The rule, written out.
    held_out = [
        text
        for i, text in enumerate(DOCUMENTS)
        if int(hashlib.blake2b(f"0/{i}/0".encode(), digest_size=8).hexdigest(), 16) < 0.2 * 2**64
    ]
    assert sorted(found["validation"]) == sorted(held_out)


def test_one_long_file_is_divided_between_the_splits_in_sections(corpus, tokenizer, tmp_path):
    metadata = prepare([corpus / "b.txt"], tokenizer.path, tmp_path / "r", 64, validation_fraction=0.3, seed=7)
    rows = {name: list(Records.open(tmp_path / "r", name)) for name in ("train", "validation")}
    counts = {name: sum((row != tokenizer.pad_id).sum() for row in split) for name, split in rows.items()}
    parts = list(sections(LONG))
    assert len(parts) > 5
    runs, last = {"train": [], "validation": []}, None
    for index, part in enumerate(parts):
        digest = int(hashlib.blake2b(f"7/0/{index}".encode(), digest_size=8).hexdigest(), 16)
        split = "validation" if digest < 0.3 * 2**64 else "train"
        runs[split] += [[]] if split != last else []
        runs[split][-1] += tokenizer.encode(part)
        last = split
    for name, expected in runs.items():
        assert counts[name] == sum(len(run) + 1 for run in expected) == metadata["splits"][name]["tokens"]
        cut = sum(len(run) + 1 - 64 for run in expected)
        assert metadata["splits"][name]["cut_share"] == pytest.approx(cut / counts[name])
        full = {tuple(row.tolist()) for row in rows[name]}
        assert all(tuple(run[i : i + 64]) in full for run in expected for i in range(0, len(run) - 63, 64))


def test_the_result_does_not_depend_on_workers_and_shards_and_windows_lose_nothing(
    corpus, tokenizer, tmp_path, monkeypatch
):
    settings = {"validation_fraction": 0.1, "rows_per_shard": 100}
    prepare([corpus], tokenizer.path, tmp_path / "one_window", 64, **settings)
    monkeypatch.setattr(prepare_module, "WINDOW_TOKENS", 5000)
    monkeypatch.setattr(prepare_module, "BATCH_CHARACTERS", 3000)
    metadata = prepare([corpus], tokenizer.path, tmp_path / "one", 64, workers=1, **settings)
    prepare([corpus], tokenizer.path, tmp_path / "two", 64, workers=2, **settings)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")
    assert multiprocessing.active_children() == []
    train = metadata["splits"]["train"]
    assert [shard["rows"] for shard in train["shards"][:-1]] == [100] * (len(train["shards"]) - 1)
    assert [shard["file"] for shard in train["shards"]] == [
        f"train-{i:05d}-of-{len(train['shards']):05d}.array_record" for i in range(len(train["shards"]))
    ]
    assert len(train["shards"]) > 2

    for split in ("train", "validation"):  # packed in other rows, but the same tokens as often
        ids = [np.concatenate(list(Records.open(tmp_path / name, split))) for name in ("one", "one_window")]
        counts = [np.bincount(split_ids[split_ids != tokenizer.pad_id], minlength=350) for split_ids in ids]
        np.testing.assert_array_equal(*counts)
        assert counts[0].sum() == metadata["splits"][split]["tokens"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one_window", "two"]


def test_preparing_needs_no_jax():
    code = "import sys, colajax.data.prepare; print([m for m in ('jax', 'grain', 'flax') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_an_existing_folder_is_kept_if_it_is_the_same_and_refused_otherwise(corpus, tokenizer, tmp_path, capsys):
    source = tmp_path / "a.jsonl"
    source.write_bytes((corpus / "a.jsonl").read_bytes())
    out = tmp_path / "r"
    first = prepare([source], tokenizer.path, out, 64, validation_fraction=0.1)
    before = _contents(out)
    source.rename(tmp_path / "moved.jsonl")  # the same text under another name
    source = tmp_path / "moved.jsonl"
    again = prepare([source], tokenizer.path, out, 64, validation_fraction=0.1, workers=2)
    assert again == first
    assert "up to date" in capsys.readouterr().out
    for change, key in (
        ({"sequence_length": 32}, r"sequence_length \(64, now 32\)"),
        ({"validation_fraction": 0.2}, "validation_fraction"),
        ({"seed": 1}, "seed"),
        ({"inputs": [corpus]}, "source"),
    ):
        arguments = {"inputs": [source], "sequence_length": 64, "validation_fraction": 0.1} | change
        with pytest.raises(UserError, match=f"already there with another {key}"):
            prepare(tokenizer_path=tokenizer.path, out=out, **arguments)
    assert _contents(out) == before
    (out / "train-00000-of-00001.array_record").unlink()
    with pytest.raises(UserError, match=r"train-00000-of-00001\.array_record: missing"):
        prepare([source], tokenizer.path, out, 64, validation_fraction=0.1)


def test_bad_settings_and_an_empty_split_are_refused_without_a_trace(corpus, tokenizer, tmp_path):
    inputs, out = [corpus / "a.jsonl"], tmp_path / "r"
    for arguments, message in (
        ({"sequence_length": 1}, "sequence_length 1"),
        ({"validation_fraction": 0.0}, "validation_fraction 0.0"),
        ({"validation_fraction": 1e-9}, "nothing fell to validation at validation_fraction 1e-09"),
        ({"validation_fraction": 1 - 1e-9}, "nothing fell to train"),
        ({"workers": 0}, "workers 0"),
        ({"rows_per_shard": 0}, "rows_per_shard 0"),
        ({"inputs": []}, "nothing fell to train"),
        ({"out": corpus / "b.txt" / "r"}, "cannot be written"),
    ):
        arguments = {"inputs": inputs, "out": out, "sequence_length": 64} | arguments
        with pytest.raises(UserError, match=message):
            prepare(tokenizer_path=tokenizer.path, **arguments)
    no_special = tmp_path / "tokenizer.json"
    no_special.write_text(
        '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
    )
    with pytest.raises(UserError, match=r"tokenizer\.json: has no padding token"):
        prepare(inputs, no_special, out, 64)
    assert list(tmp_path.iterdir()) == [no_special]


def test_the_command_lines_from_text_to_records(corpus, tmp_path):
    model, out = tmp_path / "t.model", tmp_path / "r"
    done = _tool("train_tokenizer.py", "--input", corpus, "--out", model, "--vocab_size", 30000)
    assert done.returncode == 0, done.stderr
    assert "the text supports no more" in done.stdout
    arguments = ["--input", corpus, "--tokenizer", model, "--out", out, "--sequence_length", 64, "--workers", 2]
    done = _tool("prepare_data.py", *arguments, "--validation_fraction", 0.1)
    assert done.returncode == 0, done.stderr
    assert "train: " in done.stdout
    assert "% padding" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "t.model"]
    done = _tool("prepare_data.py", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "validation_fraction (0.1, now 0.02)" in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_far_in_ends_with_status_2_one_line_and_no_files(corpus, tokenizer, tmp_path, workers):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes((corpus / "a.jsonl").read_bytes() + b'{"txt": "late"}\n')
    out = tmp_path / "r"
    arguments = ["--input", corpus, corpus, corpus, bad]  # enough for the workers to have begun
    arguments += ["--tokenizer", tokenizer.path, "--out", out, "--sequence_length", 64]
    done = _tool("prepare_data.py", *arguments, "--workers", workers)
    assert done.returncode == 2
    assert done.stderr == f"error: {bad}:121: no field 'text'; it has txt; name one with --text_field\n"
    assert list(tmp_path.iterdir()) == [bad]


def test_train_tokenizer_ends_with_status_2_and_no_files(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    done = _tool("train_tokenizer.py", "--input", tmp_path, "--out", tmp_path / "t.model", "--vocab_size", 300)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: no text in it")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]
