"""Documents that others have tokenised: files of nothing but token ids, an end of text behind each document, as OLMo,
Dolma and nanoGPT have them (numpy memmaps; .npy with numpy's own header too)."""

import io
from collections.abc import Iterator

import numpy as np
from etils import epath

from colajax.data.tokenizer import Tokenizer
from colajax.errors import UserError
from colajax.files import files_under

TYPES = {"uint16": "<u2", "uint32": "<u4"}
SUFFIXES = (".bin", ".npy")
PIECE = 2**25  # bytes that are read at once
HEADER = b"\x93NUMPY"


def find_token_files(path: epath.PathLike, kind: str) -> list[epath.Path]:
    """A path itself, or everything with one of SUFFIXES below a folder, sorted by name. Raises UserError where there is
    none, and on a size that is no multiple of that of `kind`, a key of TYPES."""
    path, size = epath.Path(path), np.dtype(TYPES[kind]).itemsize
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    files = sorted((f for f in files_under(path) if f.suffix in SUFFIXES), key=str) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: this folder holds no {' or '.join(SUFFIXES)} file")
    for file in files:
        if (length := file.stat().length) % size:
            raise UserError(f"{file}: {length:,} bytes, no multiple of {size}: it is not of {kind}, or was cut off")
    return files


def read_token_file(
    file: epath.Path, kind: str, tokenizer: Tokenizer, start: int = 0, end: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the documents of a file that begin from its token `start` to before `end`, uint32 [length] without their
    ends of text; empty ones are passed over, and the last of a file needs no end.

    Args:
        kind: a key of TYPES.
        tokenizer: whose ids they are.

    Raises:
        UserError: see `find_token_files`; an id is not the tokenizer's.
    """
    begun: list[np.ndarray] = []  # of a document that goes on in the next piece
    inside = start > 0  # a document that began before `start`, perhaps with the token before it
    for first, piece in _pieces(file, kind, tokenizer.vocab_size, max(0, start - 1)):
        here = 0
        for at in np.flatnonzero(piece == tokenizer.eos_id).tolist():
            document = np.concatenate([*begun, piece[here:at]])
            if len(document) and not inside:
                yield document
            begun, here, inside = [], at + 1, False
            if end is not None and first + here >= end:
                return
        if not inside:
            begun.append(piece[here:])
    if len(document := np.concatenate([*begun, np.empty(0, np.uint32)])):
        yield document


def _pieces(file: epath.Path, kind: str, vocab_size: int, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of its first token, some tokens) from token `first` on."""
    dtype = np.dtype(TYPES[kind])
    with file.open("rb") as stream:
        stream.seek(_begin(file, stream, dtype) + first * dtype.itemsize)
        while content := stream.read(PIECE):
            piece = np.frombuffer(content, dtype).astype(np.uint32)
            if len(bad := np.flatnonzero(piece >= vocab_size)):
                raise UserError(
                    f"{file}: token {first + bad[0]:,} is {piece[bad[0]]:,}, but the tokenizer has {vocab_size:,}: of "
                    f"another tokenizer, or not {kind}"
                )
            yield first, piece
            first += len(piece)


def _begin(file: epath.Path, stream: io.IOBase, dtype: np.dtype) -> int:
    """Where the ids begin: behind numpy's header, where there is one."""
    if stream.read(len(HEADER)) != HEADER:
        return 0
    stream.seek(0)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, found = read(stream)
    except (ValueError, KeyError) as error:
        raise UserError(f"{file}: not what numpy writes ({error})") from error
    if len(shape) != 1 or found != dtype:
        raise UserError(f"{file}: an array of {found} with shape {shape}; expected one row of {dtype.name}")
    return stream.tell()
