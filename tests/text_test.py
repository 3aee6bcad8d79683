"""Reading documents: every kind of file, and what is said of a bad one."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from colajax.data.text import read_documents
from colajax.errors import UserError

TEXTS = ["one\r\ntwo\u2028 three", "  日本\n\n", "x" * 5000]
LINES = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS).encode()


def _write_parquet(path, columns):
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=2)


def _write_all_kinds(folder):
    (folder / "c").mkdir()
    (folder / "a.jsonl").write_bytes(LINES.replace(b"\n", b"\n \n"))  # empty lines count as lines
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(LINES) + gzip.compress(LINES))  # as `cat` joins them
    (folder / "c" / "d.jsonl.zst").write_bytes(pa.compress(LINES, "zstd", asbytes=True))
    _write_parquet(folder / "e.parquet", {"id": [1, 2, 3, 4], "text": [*TEXTS, " "]})
    (folder / "f.txt").write_bytes(b"\xef\xbb\xbf" + TEXTS[0].encode())
    (folder / "g.txt").write_text(" \n")
    (folder / "readme.md").write_text("not read")


def test_a_folder_gives_every_document_of_every_kind_in_order(tmp_path):
    _write_all_kinds(tmp_path)
    documents = list(read_documents([tmp_path]))
    assert [document.text for document in documents] == TEXTS + TEXTS * 2 + TEXTS + TEXTS + TEXTS[:1]
    names = ["a.jsonl:1", "a.jsonl:3", "a.jsonl:5", *(f"b.jsonl.gz:{i}" for i in range(1, 7))]
    names += [f"c/d.jsonl.zst:{i}" for i in (1, 2, 3)] + [f"e.parquet:{i}" for i in (1, 2, 3)] + ["f.txt"]
    assert [document.origin for document in documents] == [f"{tmp_path}/{name}" for name in names]


def test_paths_are_read_in_the_order_given_and_another_field_can_be_named(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"body": "B"}\n')
    _write_parquet(tmp_path / "a.parquet", {"body": pa.array(["A"]).dictionary_encode()})
    paths = [tmp_path / "b.jsonl", tmp_path / "a.parquet"]
    assert [document.text for document in read_documents(paths, "body")] == ["B", "A"]


BAD = {
    "latin.txt": ("Größe".encode("latin-1"), "latin.txt: not UTF-8 text: byte 2 is 0xF6"),
    "utf16.txt": ("text".encode("utf-16"), "utf16.txt: not UTF-8 text: byte 0 is 0xFF"),
    "binary.txt": (b"abc\0def", "binary.txt: not text but binary: byte 3 is zero"),
    "empty.txt": (b"", "empty.txt: no text in it"),
    "blank.jsonl": (b'{"text": " "}\n\n', "blank.jsonl: no text in it"),
    "cut.jsonl": (b'{"text": "a"}\n{"tex', "cut.jsonl:2: not JSON"),
    "array.jsonl": (b'["text"]\n', "array.jsonl:1: expected a JSON object with 'text', found a list"),
    "field.jsonl": (b'{"text": "a"}\n{"id": 1, "body": "a"}\n', "field.jsonl:2: no field 'text'; it has id, body"),
    "number.jsonl": (b'{"text": 7}\n', "number.jsonl:1: 'text' is a int, expected a string"),
    "null.jsonl": (b'{"text": null}\n', "null.jsonl:1: 'text' is a NoneType"),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n', "surrogate.jsonl:1: 'text' holds half a surrogate pair"),
    "latin.jsonl": (b'{"text": "\xf6"}\n', "latin.jsonl:1: not UTF-8: byte 10 of the line"),
    "cut.jsonl.gz": (gzip.compress(LINES * 100)[:-20], "cut.jsonl.gz: cannot be read"),
    "cut.jsonl.zst": (pa.compress(LINES * 100, "zstd", asbytes=True)[:-3], "cut.jsonl.zst: cannot be read"),
    "plain.jsonl.gz": (LINES, "plain.jsonl.gz: cannot be read"),
    "empty.jsonl.gz": (b"", "empty.jsonl.gz: "),
    "text.parquet": (b"not parquet", "text.parquet: cannot be read"),
    "text.csv": (b"a,b", "text.csv: unknown kind of file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_the_place_and_the_reason(tmp_path, name):
    blob, message = BAD[name]
    (tmp_path / name).write_bytes(blob)
    with pytest.raises(UserError) as caught:
        list(read_documents([tmp_path / name]))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_the_column_is_told_what_it_has(tmp_path):
    _write_parquet(tmp_path / "a.parquet", {"body": ["a"], "id": [1]})
    with pytest.raises(UserError, match=r"a\.parquet: no column 'text'; it has body, id"):
        list(read_documents([tmp_path]))
    _write_parquet(tmp_path / "a.parquet", {"text": ["a", "b", None]})
    with pytest.raises(UserError, match=r"a\.parquet:3: 'text' is a NoneType"):
        list(read_documents([tmp_path]))


def test_missing_paths_are_found_before_anything_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="missing: no such file or folder"):
        next(read_documents([tmp_path / "a.txt", tmp_path / "missing"]))
    with pytest.raises(UserError, match=r"folder: this folder holds no \.txt"):
        next(read_documents([tmp_path / "a.txt", tmp_path / "folder"]))
