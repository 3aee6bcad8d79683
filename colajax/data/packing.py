"""Documents to rows of one length: best-fit packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling").

Only a document longer than a row is ever cut. Pure functions: a caller with a large corpus packs it window by window.
"""

from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

import numpy as np

SECTION_BYTES = 16 * 1024


class Packed(NamedTuple):
    """Some documents as rows.

    Attributes:
        rows: uint32 [rows, sequence_length].
        tokens: how many of their entries are not padding: all documents' tokens, their ends of text included.
        cut: how many of the tokens lie in the second or a later piece of a document that is longer than a row: those
            that are read without the beginning of their document.
    """

    rows: np.ndarray
    tokens: int
    cut: int


def pack(
    documents: Sequence[np.ndarray], sequence_length: int, eos_id: int, pad_id: int, unfinished: Container[int] = ()
) -> Packed:
    """Packs documents (integer [length_i] each) into rows.

    Each document is followed by `eos_id`. What is then longer than a row is cut into pieces of a row's length, the last
    one shorter; documents and pieces are placed whole, and `pad_id` fills each row's end. Rows are in the order of the
    first document in them, and documents inside a row in the order they came.

    unfinished: indices of documents whose text goes on elsewhere. No `eos_id` follows these, and nothing else in the
        row of their last piece, which would read as how they go on.
    """
    pieces, spaces, cut = [], [], 0
    for index, document in enumerate(documents):
        tokens = (document if index in unfinished else np.append(document, eos_id)).astype(np.uint32)
        new = [tokens[start : start + sequence_length] for start in range(0, len(tokens), sequence_length)]
        pieces += new
        spaces += [sequence_length if index in unfinished else len(piece) for piece in new]
        cut += max(0, len(tokens) - sequence_length)
    bins = best_fit(spaces, sequence_length)
    rows = np.full((len(bins), sequence_length), pad_id, np.uint32)
    for row, members in zip(rows, bins, strict=True):
        joined = np.concatenate([pieces[i] for i in members])
        row[: len(joined)] = joined
    return Packed(rows, sum(map(len, pieces)), cut)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit-decreasing bin packing: longest first, each into the fullest bin that still takes it.

    Args:
        lengths: of the items, 1 to `capacity` each.

    Returns:
        The bins, as sorted item indices, ordered by their first. Time is n (log n + capacity / 64).
    """
    bins: list[list[int]] = []
    bins_with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0  # bit s is set when some bin has a space of exactly s, so that the tightest fit is one lowest-bit lookup
    for item in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        length = lengths[item]
        if fitting := spaces >> length:
            space = length + (fitting & -fitting).bit_length() - 1
            index = bins_with_space[space].pop()
            if not bins_with_space[space]:
                spaces ^= 1 << space
        else:
            space, index = capacity, len(bins)
            bins.append([])
        bins[index].append(item)
        if space > length:
            bins_with_space[space - length].append(index)
            spaces |= 1 << (space - length)
    return sorted(sorted(members) for members in bins)


def sections(text: str) -> Iterator[str]:
    """Divides a text into consecutive sections of at most 16 KiB of UTF-8; joined they are the text.

    A section ends after the last empty line, else line, else space in its second half, else where it is full.
    """
    blob = text.encode()
    start = 0
    while len(blob) - start > SECTION_BYTES:
        middle, end = start + SECTION_BYTES // 2, start + SECTION_BYTES
        for boundary in (b"\n\n", b"\n", b" "):
            if (found := blob.rfind(boundary, middle, end)) >= 0:
                end = found + len(boundary)
                break
        while blob[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        yield blob[start:end].decode()
        start = end
    yield blob[start:].decode()
