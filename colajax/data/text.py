"""Reading documents from text, JSON-lines and parquet files, compressed or not, or folders of them."""

import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
from etils import epath

from colajax.errors import UserError
from colajax.files import files_under, in_bucket

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# A compressed .json file holds lines, as web corpora have it; a plain one is as likely to hold one value, or settings.
SUFFIXES = (
    ".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".parquet",
)  # fmt: skip
NAMED = 10  # files in the line of what is left out


class Document(NamedTuple):
    text: str
    origin: str  # "file", "file:line" or "file:row", counted from 1


def find_files(path: epath.PathLike) -> list[epath.Path]:
    """The text files of a path: itself, or everything with one of SUFFIXES, in any case, anywhere below a folder.

    Sorted by name. Links are followed, and a folder that is reached twice is read once; what is hidden (a name that
    begins with a dot, in a hidden folder too) is left out.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        files = [file for file in _visible_files(path) if _kind(file)]
        if not files:
            raise UserError(f"{path}: this folder holds no {', '.join(SUFFIXES)} file")
        return files
    if not _kind(path):
        raise UserError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES)}")
    return [path]


def left_out(paths: Sequence[epath.PathLike]) -> str:
    """One line that names the visible files of these folders that `find_files` does not give; empty where it gives all.

    Of many files the first are named.
    """
    folders = [epath.Path(path) for path in paths if epath.Path(path).is_dir()]
    files = [str(file) for folder in folders for file in _visible_files(folder) if not _kind(file)]
    if not files:
        return ""
    more = f", ... ({len(files) - NAMED} more)" if len(files) > NAMED else ""
    count = "1 file of another kind" if len(files) == 1 else f"{len(files)} files of other kinds"
    return f"left out: {count}: {', '.join(files[:NAMED])}{more}; read are {', '.join(SUFFIXES)}"


def _visible_files(folder: epath.Path) -> list[epath.Path]:
    if in_bucket(folder):
        found = ((str(file), file) for file in files_under(folder))
        return [file for name, file in sorted(found) if "/." not in name.removeprefix(str(folder))]
    seen, files = set(), []
    for where, below, names in os.walk(folder, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(where)) in seen:  # a link back up, or a second one to the same place
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        files += [epath.Path(where) / name for name in names if not name.startswith(".")]
    return sorted(files, key=str)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}); name folders that can") from error


def _kind(file: epath.Path) -> str | None:
    return next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), None)


def read_documents(paths: Sequence[epath.PathLike], text_field: str = "text") -> Iterator[Document]:
    """Yields the documents of the paths in order: a whole .txt file, a line of .jsonl, a row of .parquet.

    Text comes as it is, newlines untranslated. Documents of nothing but whitespace are passed over.

    Args:
        paths: files and folders, local or gs://.
        text_field: the key of a .jsonl line or the column of a .parquet file that holds the text.

    Raises:
        UserError: a path is missing, of an unknown kind or without any text; a file is damaged, or not UTF-8; a line or
            row has no string in `text_field`. The first bad one ends the reading.
    """
    for path, files in [(path, find_files(path)) for path in paths]:
        texts = (document for file in files for document in _read(file, text_field) if document.text.strip())
        first = next(texts, None)
        if first is None:
            raise UserError(f"{path}: no text in it, only whitespace or nothing at all")
        yield first
        yield from texts


def _read(file: epath.Path, text_field: str) -> Iterator[Document]:
    kind = _kind(file)
    try:
        with file.open("rb") as stream:
            if compression := COMPRESSIONS.get(os.path.splitext(kind)[1]):
                # Unlike the readers of Python's own libraries, Arrow's notices for both when the end is missing.
                compressed = pyarrow.PythonFile(stream, mode="r")
                stream = io.BufferedReader(pyarrow.CompressedInputStream(compressed, compression))
            if kind.startswith(".txt"):
                yield _read_text(file, stream)
            elif kind == ".parquet":
                yield from _read_parquet(file, stream, text_field)
            else:
                yield from _read_jsonl(file, stream, text_field)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        advice = "is it complete and of the kind its name says?"
        if "too much memory" in reason:  # zstd --long=28 and more
            advice = (
                "its zstd window is larger than the 128 MiB that are read; compress it again without --long "
                f"(zstd -d --long=31 -c {file.name} | zstd > NEW.zst)"
            )
        raise UserError(f"{file}: cannot be read ({reason}); {advice}") from error


def _read_text(file: epath.Path, stream: io.IOBase) -> Document:
    blob = stream.read()
    try:
        text = blob.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text: byte {error.start} is 0x{blob[error.start]:02X}") from error
    if "\0" in text:
        raise UserError(f"{file}: not text but binary: byte {blob.index(0)} is zero")
    return Document(text.removeprefix("\ufeff"), str(file))


def _read_jsonl(file: epath.Path, stream: io.IOBase, text_field: str) -> Iterator[Document]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        origin = f"{file}:{number}"
        try:
            record = json.loads(line)
        except UnicodeDecodeError as error:
            raise UserError(f"{origin}: not UTF-8: byte {error.start} of the line") from error
        except ValueError as error:
            raise UserError(f"{origin}: not JSON ({error})") from error
        except RecursionError as error:
            raise UserError(f"{origin}: nested too deeply; expected an object with {text_field!r}") from error
        if not isinstance(record, dict):
            raise UserError(f"{origin}: expected a JSON object with {text_field!r}, found a {type(record).__name__}")
        if text_field not in record:
            fields = ", ".join(record) or "none"
            raise UserError(f"{origin}: no field {text_field!r}; it has {fields}; name one with --text_field")
        yield Document(_checked(record[text_field], text_field, origin), origin)


def _read_parquet(file: epath.Path, stream: io.IOBase, text_field: str) -> Iterator[Document]:
    table = pyarrow.parquet.ParquetFile(stream)
    columns = table.schema_arrow.names
    if text_field not in columns:
        raise UserError(f"{file}: no column {text_field!r}; it has {', '.join(columns)}; name one with --text_field")
    number = 0
    for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
        for value in batch.column(0):
            number += 1
            origin = f"{file}:{number}"
            try:
                text = value.as_py()
            except UnicodeDecodeError as error:
                raise UserError(f"{origin}: not UTF-8: byte {error.start} of the text") from error
            yield Document(_checked(text, text_field, origin), origin)


def _checked(text: object, text_field: str, origin: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{origin}: {text_field!r} is a {type(text).__name__}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{origin}: {text_field!r} holds half a surrogate pair, not Unicode text") from error
    return text
