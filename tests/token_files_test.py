"""Documents that others have tokenised, against the same texts tokenised here."""

import json

import numpy as np
import pytest
from command_lines import run
from refusals import error_of

from colajax.data import token_files
from colajax.data.inspection import pieces_of
from colajax.data.parts import Reading
from colajax.data.prepare import prepare
from colajax.data.records import SPLITS, Records
from colajax.data.token_files import read_token_file
from colajax.data.tokenizer import train_sentencepiece

LENGTH = 32
IDS = Reading(token_type="uint16")


@pytest.fixture(scope="module")
def texts():
    return [f"number {i}: " + "word lamp " * (1 + i % 8) for i in range(90)]


@pytest.fixture(scope="module")
def tokenizer(texts, tmp_path_factory):
    return train_sentencepiece(texts, tmp_path_factory.mktemp("tokens") / "t.model", 400)


@pytest.fixture(scope="module")
def encoded(texts, tokenizer):
    return [tokenizer.encode(text) for text in texts]


def joined(documents, tokenizer, dtype) -> np.ndarray:
    return np.concatenate([[*document, tokenizer.eos_id] for document in documents]).astype(dtype)


def documents_of(folder) -> list[tuple[int, ...]]:
    """Of all rows, in any order; these documents are shorter than a row."""
    metadata = Records.open(folder, "train").metadata["tokenizer"]
    rows = [row for split in SPLITS for row in Records.open(folder, split)]
    pieces = [piece for row in rows for piece in pieces_of(row, metadata["eos_id"], metadata["pad_id"])]
    assert all(piece.ends for piece in pieces)
    return sorted(tuple(piece.tokens.tolist()) for piece in pieces)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_records_have_the_documents_of_the_files(encoded, tokenizer, tmp_path, dtype):
    """One raw file, one with numpy's header, and one whose last document has no end."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    joined(encoded[:30], tokenizer, dtype).tofile(folder / "a.bin")
    np.save(folder / "b.npy", joined(encoded[30:50], tokenizer, dtype))
    joined(encoded[50:], tokenizer, dtype)[:-1].tofile(folder / "deep" / "c.npy")
    (folder / "readme.txt").write_text("not read")
    arguments = ["--input", folder, "--tokenizer", tokenizer.path, "--out", tmp_path / "r", "--sequence_length", LENGTH,
                 "--validation_fraction", 0.2, "--token_type", dtype]  # fmt: skip
    status, _, errors = run("prepare_data", list(map(str, arguments)))
    assert (status, errors) == (0, "")
    assert documents_of(tmp_path / "r") == sorted(map(tuple, encoded))
    splits = json.loads((tmp_path / "r" / "metadata.json").read_text())["splits"]
    assert sum(split["documents"] for split in splits.values()) == len(encoded)
    assert sum(split["tokens"] for split in splits.values()) == sum(map(len, encoded)) + len(encoded)
    assert "is up to date" in run("prepare_data", list(map(str, arguments)))[1]
    arguments[-1] = "uint32" if dtype == "uint16" else "uint16"
    status, _, errors = run("prepare_data", list(map(str, arguments)))
    assert (status, errors.count("\n")) == (2, 1)


def test_copies_of_a_document_stay_together(encoded, tokenizer, tmp_path):
    joined([*encoded, *reversed(encoded)], tokenizer, "uint16").tofile(tmp_path / "a.bin")
    prepare([tmp_path / "a.bin"], tokenizer.path, tmp_path / "r", LENGTH, validation_fraction=0.2, reading=IDS)
    metadata = Records.open(tmp_path / "r", "train").metadata["tokenizer"]
    train, held_out = (
        {tuple(piece.tokens.tolist()) for row in Records.open(tmp_path / "r", split)
         for piece in pieces_of(row, metadata["eos_id"], metadata["pad_id"])} for split in SPLITS
    )  # fmt: skip
    assert train
    assert held_out
    assert not train & held_out


@pytest.mark.parametrize("piece", [2, 6, 64, 2**20])
def test_documents_do_not_depend_on_how_a_file_is_read(encoded, tokenizer, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(token_files, "PIECE", piece)
    with_empty = [[], *encoded[:20], [], [], *encoded[20:]]
    joined(with_empty, tokenizer, "uint16").tofile(tmp_path / "a.bin")
    np.save(tmp_path / "b.npy", joined(encoded[:3], tokenizer, "uint16"))
    files = [tmp_path / "a.bin", tmp_path / "b.npy"]
    found = [document.tolist() for file in files for document in read_token_file(file, "uint16", tokenizer)]
    assert found == [*encoded, *encoded[:3]]


def test_what_is_no_file_of_such_tokens_is_one_line(encoded, tokenizer, tmp_path):
    whole = joined(encoded, tokenizer, "uint16")
    (tmp_path / "odd.bin").write_bytes(whole.tobytes()[:-1])
    bad = whole.copy()
    bad[70] = 60_000
    bad.tofile(tmp_path / "other.bin")
    np.save(tmp_path / "two.npy", whole[:20].reshape(2, 10))
    np.save(tmp_path / "wide.npy", whole.astype("uint32"))
    (tmp_path / "header.npy").write_bytes(np.lib.format.MAGIC_PREFIX + b"\x01\x00nonsense " + bytes(49))
    np.array([7] * 40 + [tokenizer.eos_id], "uint16").tofile(tmp_path / "single.bin")
    (tmp_path / "none").mkdir()
    for name, said in (
        ("odd.bin", "no multiple of 2"), ("other.bin", "token 70 is 60,000, but the tokenizer has "),
        ("two.npy", "shape (2, 10)"), ("wide.npy", "an array of uint32"), ("header.npy", "not what numpy writes"),
        ("none", "holds no .bin or .npy"), ("missing", "no such file"), ("single.bin", "a single document"),
    ):  # fmt: skip
        path, into = tmp_path / name, (tokenizer.path, tmp_path / "r", LENGTH)
        message = error_of(lambda path=path, into=into: prepare([path], *into, reading=IDS))
        assert said in message, name
        assert "\n" not in message
        assert name == "single.bin" or message.startswith(str(path))
        assert not (tmp_path / "r").exists()
    assert "uint16 or uint32" in error_of(lambda: prepare([tmp_path], *into, reading=Reading(token_type="int8")))
