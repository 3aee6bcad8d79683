"""The unit of preparation: a part of the input, which whoever works on it reads for itself and once."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from colajax.data.inputs import kind_of
from colajax.data.text import read_file, row_groups
from colajax.data.token_files import TYPES, read_token_file
from colajax.data.tokenizer import Tokenizer
from colajax.errors import UserError
from colajax.files import AT_ONCE, in_bucket

MOST = 1024  # parts of a large input, but for what cannot be cut
SMALLEST, LARGEST = 2**25, 2**30  # bytes of one


class Range(NamedTuple):
    """The documents of a file, or those that begin from `start` to before `end`: bytes of .jsonl, row groups of
    .parquet, tokens of a file of tokens; 0 and None where a file is not cut. length, modified: of the file, in bytes
    and nanoseconds (in a bucket whole seconds), by which it is known to be the same."""

    file: str
    length: int
    modified: int
    start: int
    end: int | None


class Part(NamedTuple):
    ranges: tuple[Range, ...]
    size: int  # bytes


class Reading(NamedTuple):
    """How documents are read, and which are left out.

    Attributes:
        text_field: see `text.read_documents`.
        token_type: a key of `token_files.TYPES` where the files are of tokens.
        bad_documents: "stop" or "skip": of what is not as it should be.
        shortest, longest: of a document, in characters or, of tokens, in tokens; those beyond are left out.
    """

    text_field: str = "text"
    token_type: str | None = None
    bad_documents: str = "stop"
    shortest: int = 0
    longest: int | None = None


class Tally:
    """What is known of a part when its documents have been read.

    Attributes:
        found: documents in each range.
        left_out: how many were, by the reason.
        bad: what was wrong with the first that was skipped, or None.
        digest: SHA-256 of the documents, each after its length, those that were left out for theirs too.
    """

    def __init__(self):
        self.found: list[int] = []
        self.left_out: Counter[str] = Counter()
        self.bad: str | None = None
        self._hash = hashlib.sha256()

    def skip(self, error: UserError) -> None:
        self.left_out["bad"] += 1
        self.bad = self.bad or str(error)

    def add(self, content: bytes) -> None:
        self.found[-1] += 1
        self._hash.update(len(content).to_bytes(8, "little"))
        self._hash.update(content)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def parts_of(files: Sequence[epath.Path], token_type: str | None = None) -> list[Part]:
    """The parts of some files, in order: small files together, and large ones cut where a document ends, if their kind
    allows that (plain .jsonl, .parquet, tokens). A function of the files' lengths alone."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        known = list(pool.map(_known, files))
        size = min(max(sum(length for length, _ in known) // MOST, SMALLEST), LARGEST)
        large = [(file, length, token_type, size) for file, (length, _) in zip(files, known, strict=True)]
        cuts = list(pool.map(_cuts, *zip(*large, strict=True))) if files else []
    parts: list[Part] = []
    ranges, filled = [], 0
    for file, (length, modified), pieces in zip(files, known, cuts, strict=True):
        for start, end, weight in pieces:
            if ranges and filled + weight > size:
                parts.append(Part(tuple(ranges), filled))
                ranges, filled = [], 0
            before = ranges[-1] if ranges else None
            if before and before.file == str(file):
                ranges[-1] = before._replace(end=end)
            else:
                ranges.append(Range(str(file), length, modified, start, end))
            filled += weight
    return [*parts, Part(tuple(ranges), filled)] if ranges else parts


def _known(file: epath.Path) -> tuple[int, int]:
    """Length and time of a file."""
    try:
        if in_bucket(file):
            found = file.stat()
            return found.length, int(found.mtime or 0) * 10**9
        found = os.stat(file)
        return found.st_size, found.st_mtime_ns
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def _cuts(file: epath.Path, length: int, token_type: str | None, size: int) -> list[tuple[int, int | None, int]]:
    """(start, end, bytes) of the pieces of a file, none much larger than `size` where its kind allows that."""
    if length <= size:
        return [(0, None, length)]
    if token_type:
        item = np.dtype(TYPES[token_type]).itemsize
        return [(start // item, end and end // item, weight) for start, end, weight in _even(length, size)]
    if (kind := kind_of(file)) == ".jsonl":
        return _even(length, size)
    if kind == ".parquet":
        weights = row_groups(file)
        return [(group, group + 1, weight) for group, weight in enumerate(weights)] or [(0, None, length)]
    return [(0, None, length)]


def _even(length: int, size: int) -> list[tuple[int, int | None, int]]:
    starts = range(0, length, size)
    return [(start, start + size if start + size < length else None, min(size, length - start)) for start in starts]


def read_part(
    part: Part, reading: Reading, tokenizer: Tokenizer, tally: Tally | None = None
) -> Iterator[str | np.ndarray]:
    """Yields the documents of a part: texts or, of tokens, uint32 [length] each; counts them in `tally`.

    Raises:
        UserError: see `text.read_documents` and `token_files.read_token_file`; a file is another than it was when the
            parts were made.
    """
    tally = tally or Tally()
    bad = {"bad": tally.skip} if reading.bad_documents == "skip" else {}
    for span in part.ranges:
        file = epath.Path(span.file)
        _check_same(file, span)
        tally.found.append(0)
        if reading.token_type:
            documents = read_token_file(file, reading.token_type, tokenizer, span.start, span.end)
        else:
            documents = read_file(file, reading.text_field, span.start, span.end, **bad)
        try:
            for document in documents:
                tally.add(content_of(document))
                if len(document) < reading.shortest:
                    tally.left_out["short"] += 1
                elif reading.longest is not None and len(document) > reading.longest:
                    tally.left_out["long"] += 1
                else:
                    yield document
        except UserError:
            _check_same(file, span)  # or what is bad in it is what somebody is still writing
            raise
        _check_same(file, span)


def content_of(document: str | np.ndarray) -> bytes:
    """By which documents are told apart."""
    return document.encode() if isinstance(document, str) else document.tobytes()


def _check_same(file: epath.Path, span: Range) -> None:
    length, modified = _known(file)
    if (length, modified) != (span.length, span.modified):
        raise UserError(
            f"{file}: changed since its parts were counted ({span.length:,} bytes then, {length:,} now); "
            f"run the same command again"
        )


def name_of(part: Part, *settings: object) -> str:
    """A name that no part of other files, of another place in them, or of other settings has."""
    return _digest([part, *settings])[:20]


def digest_of_ranges(parts: Iterable[Part]) -> str:
    """Of files that have neither moved nor changed the same."""
    return _digest([part.ranges for part in parts])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def documents_of_inputs(
    inputs: Mapping[str, Sequence[epath.Path]], parts: Sequence[Part], found: Sequence[Sequence[int]]
) -> dict[str, int]:
    """How many each input has; inputs: the files of each; found: `Tally.found` of each part."""
    by_file: Counter[str] = Counter()
    for part, counts in zip(parts, found, strict=True):
        for span, count in zip(part.ranges, counts, strict=True):
            by_file[span.file] += count
    return {name: sum(by_file[str(file)] for file in set(files)) for name, files in inputs.items()}
