"""Reading documents from .txt, .jsonl (plain, .gz, .zst) and .parquet files, or folders of them."""

import io
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
from etils import epath

from colajax.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


class Document(NamedTuple):
    text: str
    origin: str  # "file", "file:line" or "file:row", counted from 1


def find_files(path: epath.PathLike) -> list[epath.Path]:
    """The text files of a path: itself, or everything with one of SUFFIXES anywhere below a folder, sorted by name."""
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        files = [folder / name for folder, _, names in path.walk() for name in names if name.endswith(SUFFIXES)]
        if not files:
            raise UserError(f"{path}: this folder holds no {', '.join(SUFFIXES)} file")
        return sorted(files, key=str)
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES)}")
    return [path]


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
    try:
        with file.open("rb") as stream:
            if file.name.endswith(".txt"):
                yield _read_text(file, stream)
            elif file.name.endswith(".parquet"):
                yield from _read_parquet(file, stream, text_field)
            else:
                yield from _read_jsonl(file, stream, text_field)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: cannot be read ({reason}); is it complete and of the kind its name says?") from error


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
    compression = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix)
    if compression:
        # Unlike the readers of Python's own libraries, Arrow's notices for both kinds when the end is missing.
        stream = io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), compression))
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
