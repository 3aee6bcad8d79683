"""Reading documents from text, JSON-lines, parquet and Arrow files, compressed or not, or folders of them."""

import io
import json
import lzma
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from etils import epath

from colajax.errors import UserError
from colajax.files import files_under, in_bucket

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}  # as Arrow calls them; xz it does not read
# A compressed .json file holds lines, as web corpora have it; a plain one is as likely to hold one value, or settings.
SUFFIXES = (
    ".txt", ".jsonl", *(f"{kind}{by}" for kind in (".txt", ".jsonl", ".json") for by in COMPRESSIONS), ".parquet",
    ".arrow",
)  # fmt: skip
READ = f".txt, .jsonl, these and .json with {', '.join(COMPRESSIONS)} behind it, .parquet, .arrow"
CACHE = "cache-"  # begins the names of .arrow files in which the datasets library keeps what it has computed
ARROW_FILE = b"ARROW1"  # its first bytes, where it is no stream
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
            raise UserError(f"{path}: this folder holds no file that is read: {READ}")
        return files
    if not _kind(path):
        raise UserError(f"{path}: unknown kind of file; expected {READ}")
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
    return f"left out: {count}: {', '.join(files[:NAMED])}{more}; read are {READ}"


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
    kind = next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), None)
    return None if kind == ".arrow" and file.name.startswith(CACHE) else kind


def read_documents(paths: Sequence[epath.PathLike], text_field: str = "text") -> Iterator[Document]:
    """Yields the documents of the paths in order: a whole .txt file, a line of .jsonl, a row of .parquet or .arrow.

    Text comes as it is, newlines untranslated. Documents of nothing but whitespace are passed over.

    Args:
        paths: files and folders, local or gs://.
        text_field: the key of a .jsonl line or the column of a table that holds the text; a.b is b of what a holds.

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
            if (compression := COMPRESSIONS.get(os.path.splitext(kind)[1])) == "xz":
                stream = io.BufferedReader(lzma.LZMAFile(stream))  # noqa: SIM115 - of the one that is open
            elif compression:
                # Unlike the readers of Python's own libraries, Arrow's notices when the end is missing.
                compressed = pyarrow.PythonFile(stream, mode="r")
                stream = io.BufferedReader(pyarrow.CompressedInputStream(compressed, compression))
            if kind.startswith(".txt"):
                yield _read_text(file, stream)
            elif kind == ".parquet":
                table = pyarrow.parquet.ParquetFile(stream)
                _column_of(file, table.schema_arrow.names, text_field)  # or Arrow reads rows without any column
                yield from _read_table(file, table.iter_batches(batch_size=1024, columns=[text_field]), text_field)
            elif kind == ".arrow":
                yield from _read_table(file, _arrow_batches(stream), text_field)
            else:
                yield from _read_jsonl(file, stream, text_field)
    except (OSError, EOFError, MemoryError, lzma.LZMAError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
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
        yield Document(_checked(_field(record, text_field, origin), text_field, origin), origin)


def _field(record: dict, path: str, origin: str) -> object:
    """record[path], or of a path a.b record[a][b]."""
    found = record
    for name in (path,) if path in record else path.split("."):
        if not isinstance(found, dict) or name not in found:
            fields = ", ".join(record) or "none"
            raise UserError(f"{origin}: no field {path!r}; it has {fields}; name one with --text_field")
        found = found[name]
    return found


def _column_of(file: epath.Path, names: Sequence[str], text_field: str) -> str:
    """The column that has the field, or in which it is."""
    column = text_field if text_field in names else text_field.split(".")[0]
    if column not in names:
        raise UserError(f"{file}: no column {text_field!r}; it has {', '.join(names)}; name one with --text_field")
    return column


def _arrow_batches(stream: io.IOBase) -> Iterator[pyarrow.RecordBatch]:
    is_file = stream.read(len(ARROW_FILE)) == ARROW_FILE
    stream.seek(0)
    if is_file:
        table = pyarrow.ipc.open_file(stream)
        yield from map(table.get_batch, range(table.num_record_batches))
    else:  # as the datasets library writes it
        yield from pyarrow.ipc.open_stream(stream)


def _read_table(file: epath.Path, batches: Iterator[pyarrow.RecordBatch], text_field: str) -> Iterator[Document]:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # or what is damaged may end the process
        name = _column_of(file, batch.schema.names, text_field)
        for value in batch.column(batch.schema.names.index(name)):
            number += 1
            origin = f"{file}:{number}"
            try:
                text = _field({name: value.as_py()}, text_field, origin)
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
