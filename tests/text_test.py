"""Reading documents: every kind of file, and what is said of a bad one."""

import bz2
import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from colajax.data.inputs import left_out
from colajax.data.text import read_documents
from colajax.errors import UserError

TEXTS = ["one\r\ntwo\u2028 three", "  日本\n\n", "x" * 5000]
LINES = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS).encode()


def _write_parquet(path, columns):
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=2)


def _write_arrow(path, texts, make):
    table = pa.table({"id": range(len(texts)), "text": texts})
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def _write_all_kinds(folder):
    (folder / "c").mkdir()
    (folder / "a.jsonl").write_bytes(LINES.replace(b"\n", b"\n \n"))  # empty lines count as lines
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(LINES) + gzip.compress(LINES))  # as `cat` joins them
    (folder / "c" / "d.jsonl.zst").write_bytes(pa.compress(LINES, "zstd", asbytes=True))
    _write_parquet(folder / "e.parquet", {"id": [1, 2, 3, 4], "text": [*TEXTS, " "]})
    (folder / "f.txt").write_bytes(b"\xef\xbb\xbf" + TEXTS[0].encode())
    (folder / "g.txt").write_text(" \n")
    (folder / "h.jsonl.bz2").write_bytes(bz2.compress(LINES) + bz2.compress(LINES))
    (folder / "i.json.xz").write_bytes(lzma.compress(LINES) + lzma.compress(LINES))
    _write_arrow(folder / "j.arrow", TEXTS, pyarrow.ipc.new_stream)
    _write_arrow(folder / "k.arrow", TEXTS, pyarrow.ipc.new_file)
    _write_arrow(folder / "cache-0123.arrow", TEXTS, pyarrow.ipc.new_stream)  # of the datasets library
    (folder / "readme.md").write_text("not read")


def test_a_folder_gives_every_document_of_every_kind_in_order(tmp_path):
    _write_all_kinds(tmp_path)
    assert list(read_documents([tmp_path])) == TEXTS * 5 + TEXTS[:1] + TEXTS * 6


def _texts(folder):
    return list(read_documents([folder]))


def test_links_are_followed_once_and_names_are_read_in_any_case(tmp_path):
    """Half of a corpus may lie behind a link; a link to a folder above is no second copy of it, and no loop."""
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    (corpus / "a").mkdir(parents=True)
    elsewhere.mkdir()
    (corpus / "a" / "1.jsonl").write_text('{"text": "1"}\n')
    (corpus / "a" / "2.JSONL").write_text('{"text": "2"}\n')
    (corpus / "a" / "3.json.gz").write_bytes(gzip.compress(b'{"text": "3"}\n'))
    (corpus / "a" / "4.Txt.GZ").write_bytes(gzip.compress(b"4"))
    (elsewhere / "5.jsonl").write_text('{"text": "5"}\n')
    (elsewhere / "up").symlink_to(corpus)
    (corpus / "b").symlink_to("../elsewhere")
    (corpus / "c").symlink_to("../elsewhere")
    (corpus / "d.txt").symlink_to("../elsewhere/6")
    (elsewhere / "6").write_text("6")
    assert _texts(corpus) == ["1", "2", "3", "4", "5", "6"]


def test_what_is_hidden_is_no_text_and_what_is_of_another_kind_is_named(tmp_path):
    for name in (".ipynb_checkpoints/a.jsonl", ".git/x/b.txt", ".c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("hidden")
    (tmp_path / "a.txt").write_text("seen")
    assert _texts(tmp_path) == ["seen"]
    assert left_out([tmp_path]) == left_out([tmp_path / "a.txt"]) == ""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "report.docx").write_text("")
    assert left_out([tmp_path]).startswith(f"left out: 1 file of another kind: {tmp_path}/deep/report.docx; read are ")
    for i in range(20):
        (tmp_path / f"{i:02d}.md").write_text("")
    line = left_out([tmp_path])
    assert line.startswith(f"left out: 21 files of other kinds: {tmp_path}/00.md, ")
    assert line.count(".md") == 10
    assert "(11 more)" in line
    assert _texts(tmp_path) == ["seen"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("seen")
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)  # as root, every folder can be read
    with pytest.raises(UserError, match="closed: cannot be read"):
        _texts(tmp_path)


def test_paths_are_read_in_the_order_given_and_another_field_can_be_named(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"body": "B"}\n')
    _write_parquet(tmp_path / "a.parquet", {"body": pa.array(["A"]).dictionary_encode()})
    paths = [tmp_path / "b.jsonl", tmp_path / "a.parquet"]
    assert list(read_documents(paths, "body")) == ["B", "A"]


def test_a_field_may_lie_in_another(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": {"b": {"c": "line"}}}\n{"a.b.c": "its own name", "a": {}}\n')
    _write_parquet(tmp_path / "b.parquet", {"a": [{"b": {"c": "row", "d": 1}}], "c": ["other"]})
    table = pa.table({"a": [{"b": {"c": "cell"}}]})
    with pyarrow.ipc.new_stream(str(tmp_path / "c.arrow"), table.schema) as writer:
        writer.write_table(table)
    found = list(read_documents([tmp_path], "a.b.c"))
    assert found == ["line", "its own name", "row", "cell"]
    for name, line in (("a.jsonl:1", "it has a;"), ("b.parquet", "a.b.x"), ("c.arrow:1", "it has a;")):
        with pytest.raises(UserError) as caught:
            list(read_documents([tmp_path / name.partition(":")[0]], "a.b.x"))
        assert str(caught.value).startswith(f"{tmp_path}/{name}")
        assert line in str(caught.value)


def _is_refused(folder) -> bool:
    try:
        list(read_documents([folder]))
    except UserError:
        return True
    return False


@pytest.mark.parametrize("make", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_an_arrow_file_that_is_damaged_is_read_or_refused(tmp_path, make):
    """A bit of a text is another text; offsets and sizes that do not fit are no crash."""
    _write_arrow(tmp_path / "a.arrow", TEXTS[:2] * 3, make)
    whole, refused = (tmp_path / "a.arrow").read_bytes(), 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "a.arrow").write_bytes(damaged)
        refused += _is_refused(tmp_path)
    assert refused > 10


# A zstd frame with a window of 2 GiB (zstd --long=31): one raw block of 14 bytes.
LONG_WINDOW = bytes.fromhex("28b52ffd 00 a8") + (14 << 3 | 1).to_bytes(3, "little") + b'{"text": "a"}\n'
DEEP = b'{"text": "x", "meta": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"

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
    "cut.jsonl.bz2": (bz2.compress(LINES * 100)[:-20], "cut.jsonl.bz2: cannot be read"),
    "cut.jsonl.xz": (lzma.compress(LINES * 100)[:-20], "cut.jsonl.xz: cannot be read"),
    "plain.txt.xz": (b"text", "plain.txt.xz: cannot be read"),
    "text.arrow": (b"not arrow", "text.arrow: cannot be read"),
    "long.jsonl.zst": (LONG_WINDOW, "long.jsonl.zst: cannot be read"),
    "deep.jsonl": (b'{"text": "a"}\n' + DEEP, "deep.jsonl:2: nested too deeply"),
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


def test_a_zstd_window_that_is_too_large_is_called_that(tmp_path):
    short_window = LONG_WINDOW[:5] + b"\x58" + LONG_WINDOW[6:]  # of 2 MiB: the same frame is whole and can be read
    (tmp_path / "a.jsonl.zst").write_bytes(short_window)
    assert _texts(tmp_path) == ["a"]
    (tmp_path / "a.jsonl.zst").write_bytes(LONG_WINDOW)
    with pytest.raises(UserError, match=r"larger than the 128 MiB.* without --long"):
        _texts(tmp_path)


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
    with pytest.raises(UserError, match=r"folder: this folder holds no file that is read: \.txt"):
        next(read_documents([tmp_path / "a.txt", tmp_path / "folder"]))
