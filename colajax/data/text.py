"""Reading documents from text, JSON-lines, parquet and Arrow files, compressed or not, or folders of them."""

import io
import json
import lzma
import os
from collections.abc import Callable, Iterator, Sequence

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from etils import epath

from colajax.data.inputs import COMPRESSIONS, find_files, kind_of
from colajax.errors import UserError

ARROW_FILE = b"ARROW1"  # its first bytes, where it is no stream
BUFFER = 2**20  # bytes


def _stop(error: UserError) -> None:
    raise error


def read_documents(paths: Sequence[epath.PathLike], text_field: str = "text") -> Iterator[str]:
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
        texts = (text for file in files for text in read_file(file, text_field))
        first = next(texts, None)
        if first is None:
            raise no_text(path)
        yield first
        yield from texts


def no_text(path: epath.PathLike) -> UserError:
    return UserError(f"{path}: no text in it, only whitespace or nothing at all")


def read_file(
    file: epath.Path, text_field: str, start: int = 0, end: int | None = None,
    bad: Callable[[UserError], None] = _stop,
) -> Iterator[str]:  # fmt: skip
    """As `read_documents`, of one file, or of a plain .jsonl the lines that begin from byte `start` to before `end`, of
    a .parquet these row groups; bad(error) is called of each document that is not as it should be."""
    kind = kind_of(file)
    try:
        with file.open("rb") as stream:
            if (compression := COMPRESSIONS.get(os.path.splitext(kind)[1])) == "xz":
                stream = io.BufferedReader(lzma.LZMAFile(stream))  # noqa: SIM115 - of the one that is open
            elif compression:
                # Unlike the readers of Python's own libraries, Arrow's notices when the end is missing.
                compressed = pyarrow.PythonFile(stream, mode="r")
                stream = io.BufferedReader(pyarrow.CompressedInputStream(compressed, compression))
            if kind.startswith(".txt"):
                texts = _read_text(file, stream, bad)
            elif kind == ".parquet":
                texts = _read_parquet(file, stream, text_field, start, end, bad)
            elif kind == ".arrow":
                texts = _read_table(file, _arrow_batches(stream), text_field, 0, bad)
            else:
                texts = _read_jsonl(file, stream, text_field, start, end, bad)
            yield from (text for text in texts if text.strip())
    except (OSError, EOFError, MemoryError, lzma.LZMAError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "is it complete and of the kind its name says?"
        if "too much memory" in reason:  # zstd --long=28 and more
            advice = (
                "its zstd window is larger than the 128 MiB that are read; compress it again without --long "
                f"(zstd -d --long=31 -c {file.name} | zstd > NEW.zst)"
            )
        raise UserError(f"{file}: cannot be read ({reason}); {advice}") from error


def _read_text(file: epath.Path, stream: io.IOBase, bad: Callable) -> Iterator[str]:
    blob = stream.read()
    try:
        text = blob.decode()
    except UnicodeDecodeError as error:
        bad(UserError(f"{file}: not UTF-8 text: byte {error.start} is 0x{blob[error.start]:02X}"))
        return
    if "\0" in text:
        bad(UserError(f"{file}: not text but binary: byte {blob.index(0)} is zero"))
        return
    yield text.removeprefix("\ufeff")


def _read_jsonl(
    file: epath.Path, stream: io.IOBase, text_field: str, start: int, end: int | None, bad: Callable
) -> Iterator[str]:
    for number, line in enumerate(_lines(stream, start, end), start=1):
        if not line.strip():
            continue
        try:
            text = _text_of(_object_of(line, text_field), text_field)
        except _Bad as error:
            bad(UserError(f"{file}:{_lines_before(file, start) + number}: {error}"))
        else:
            yield text


def _lines(stream: io.IOBase, start: int, end: int | None) -> Iterator[bytes]:
    """The lines that begin from byte `start` to before `end`."""
    if start == 0 and end is None:
        yield from stream
        return
    stream.seek(max(0, start - 1))
    at = start - 1 + len(stream.readline()) if start else 0
    while (end is None or at < end) and (line := stream.readline()):
        yield line
        at += len(line)


def _lines_before(file: epath.Path, start: int) -> int:
    """How many begin before byte `start`."""
    if start == 0:
        return 0
    count, left = 1, start - 1
    with file.open("rb") as stream:
        while left and (piece := stream.read(min(left, BUFFER))):
            count, left = count + piece.count(b"\n"), left - len(piece)
    return count


class _Bad(Exception):
    """What is wrong with a document, its place not yet said."""


def _object_of(line: bytes, text_field: str) -> dict:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise _Bad(f"not UTF-8: byte {error.start} of the line") from error
    except ValueError as error:
        raise _Bad(f"not JSON ({error})") from error
    except RecursionError as error:
        raise _Bad(f"nested too deeply; expected an object with {text_field!r}") from error
    if not isinstance(record, dict):
        raise _Bad(f"expected a JSON object with {text_field!r}, found a {type(record).__name__}")
    return record


def _text_of(record: dict, path: str) -> str:
    """record[path], or of a path a.b record[a][b]."""
    found = record
    for name in (path,) if path in record else path.split("."):
        if not isinstance(found, dict) or name not in found:
            raise _Bad(f"no field {path!r}; it has {', '.join(record) or 'none'}; name one with --text_field")
        found = found[name]
    if not isinstance(found, str):
        raise _Bad(f"{path!r} is a {type(found).__name__}, expected a string")
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise _Bad(f"{path!r} holds half a surrogate pair, not Unicode text") from error
    return found


def _column_of(file: epath.Path, names: Sequence[str], text_field: str) -> str:
    """The column that has the field, or in which it is."""
    column = text_field if text_field in names else text_field.split(".")[0]
    if column not in names:
        raise UserError(f"{file}: no column {text_field!r}; it has {', '.join(names)}; name one with --text_field")
    return column


def row_groups(file: epath.Path) -> list[int]:
    """Of a .parquet file the bytes of each, uncompressed."""
    try:
        with file.open("rb") as stream:
            metadata = pyarrow.parquet.ParquetFile(stream).metadata
            return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: cannot be read ({reason}); is it complete and of the kind its name says?") from error


def _read_parquet(
    file: epath.Path, stream: io.IOBase, text_field: str, start: int, end: int | None, bad: Callable
) -> Iterator[str]:
    table = pyarrow.parquet.ParquetFile(stream)
    _column_of(file, table.schema_arrow.names, text_field)  # or Arrow reads rows without any column
    groups = range(table.num_row_groups)
    before = sum(table.metadata.row_group(group).num_rows for group in groups[:start])
    batches = table.iter_batches(batch_size=1024, row_groups=list(groups[start:end]), columns=[text_field])
    yield from _read_table(file, batches, text_field, before, bad)


def _arrow_batches(stream: io.IOBase) -> Iterator[pyarrow.RecordBatch]:
    is_file = stream.read(len(ARROW_FILE)) == ARROW_FILE
    stream.seek(0)
    if is_file:
        table = pyarrow.ipc.open_file(stream)
        yield from map(table.get_batch, range(table.num_record_batches))
    else:  # as the datasets library writes it
        yield from pyarrow.ipc.open_stream(stream)


def _read_table(
    file: epath.Path, batches: Iterator[pyarrow.RecordBatch], text_field: str, rows_before: int, bad: Callable
) -> Iterator[str]:
    number = rows_before
    for batch in batches:
        batch.validate(full=True)  # or what is damaged may end the process
        name = _column_of(file, batch.schema.names, text_field)
        for value in batch.column(batch.schema.names.index(name)):
            number += 1
            try:
                text = _text_of({name: _python_of(value)}, text_field)
            except _Bad as error:
                bad(UserError(f"{file}:{number}: {error}"))
            else:
                yield text


def _python_of(value: pyarrow.Scalar) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise _Bad(f"not UTF-8: byte {error.start} of the text") from error
