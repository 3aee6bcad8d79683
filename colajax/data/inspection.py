"""What is in records: documents in rows, their lengths, tokens, and what both splits have."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from colajax.data.records import SPLITS, Records
from colajax.errors import UserError

AT_ONCE = 1024  # rows that are read together
LONG = 16  # tokens from which on a document that both splits have is no chance


class Piece(NamedTuple):
    """A document, or as much of it as a row holds."""

    start: int  # place in the row
    tokens: np.ndarray  # without the end of text
    ends: bool  # whether its end of text is in the row


class Stats(NamedTuple):
    """Of rows that were read; lengths: {tokens of a piece: pieces}; digests: of pieces of LONG tokens or more, {digest:
    how often}."""

    rows: int
    entries: int  # of the rows, padding too
    tokens: Counter
    lengths: Counter
    unended: int  # pieces whose end of text is not in their row
    digests: Counter


def pieces_of(row: np.ndarray, eos_id: int, pad_id: int) -> Iterator[Piece]:
    """Of a row, int [sequence_length]. Padding is at the end of a row alone."""
    used = row[: len(row) - int(np.argmax(row[::-1] != pad_id))] if (row != pad_id).any() else row[:0]
    start = 0
    for end in np.flatnonzero(used == eos_id).tolist():
        yield Piece(start, used[start:end], True)
        start = end + 1
    if start < len(used):
        yield Piece(start, used[start:], False)


def stats_of(records: Records, most_rows: int) -> Stats:
    """Of so many rows at most, at even distances."""
    tokenizer = records.metadata["tokenizer"]
    chosen = np.linspace(0, len(records) - 1, min(most_rows, len(records))).astype(int).tolist()
    tokens, lengths, digests, unended = Counter(), Counter(), Counter(), 0
    for first in range(0, len(chosen), AT_ONCE):
        rows = records.read(chosen[first : first + AT_ONCE])
        values, counts = np.unique(rows[rows != tokenizer["pad_id"]], return_counts=True)
        tokens.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        for piece in (piece for row in rows for piece in pieces_of(row, tokenizer["eos_id"], tokenizer["pad_id"])):
            lengths[len(piece.tokens)] += 1
            unended += not piece.ends
            if len(piece.tokens) >= LONG:
                digests[hashlib.sha256(piece.tokens.tobytes()).digest()] += 1
    return Stats(len(chosen), len(chosen) * records.metadata["sequence_length"], tokens, lengths, unended, digests)


def bins_of(lengths: Counter) -> list[tuple[int, int, int]]:
    """[(least, most, pieces), ...] by powers of two, without those that have none at the ends."""
    found = Counter()
    for length, count in lengths.items():
        found[length.bit_length()] += count
    bits = range(min(found), max(found) + 1) if found else ()
    return [(2 ** (bit - 1) if bit else 0, 2**bit - 1, found[bit]) for bit in bits]


def draw(stats: dict[str, Stats]):
    """A matplotlib figure of the lengths, by split. Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--out: needs matplotlib; pip install 'colajax[plot]'") from None
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    panel = figure.subplots()
    for split, colour in zip(SPLITS, ("#0072B2", "#D55E00"), strict=True):
        lengths = stats[split].lengths
        if total := lengths.total():
            longest = max(lengths)
            edges = np.unique(np.linspace(0, longest + 1, min(longest + 1, 60) + 1).astype(int))
            panel.hist(
                list(lengths), bins=edges, weights=[count / total for count in lengths.values()], histtype="step",
                color=colour, label=f"{split}: {total:,} documents or pieces",
            )  # fmt: skip
    panel.set(xlabel="tokens of a document, or of a piece of one", ylabel="share")
    panel.legend(frameon=False)
    return figure
