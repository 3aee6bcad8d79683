"""Which text is held out: whole documents, chosen by what they say."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np

from colajax.data.packing import sections
from colajax.errors import UserError


class Passage(NamedTuple):
    """What stays together: a document or, of a corpus of a single one, a stretch of it."""

    document: int  # running index over the corpus
    split: str
    text: str
    ends: bool  # whether its document ends with it


class Division(NamedTuple):
    """What decides the split of a text.

    A text goes to validation when its hash, made of it and the seed, is below `limit`. Copies of a text thus go to the
    same split, whatever else is in the corpus and wherever they lie. Where that would leave a split empty, one text
    goes there against the rule: that of the middle length, as the longest may be most of the corpus.

    Attributes:
        of: "document" or, where all documents are copies of one, "section" (see `packing.sections`).
        seed: of the hashes.
        limit: validation_fraction of the range of the hashes.
        exception: the hash of the text that is an exception to the rule, if there is one.
    """

    of: str
    seed: int
    limit: int
    exception: int | None

    def split(self, text: str | bytes) -> str:
        number = _hash(self.seed, text)
        return "validation" if (number < self.limit) != (number == self.exception) else "train"

    def passages(self, documents: Iterable[str]) -> Iterator[Passage]:
        for index, text in enumerate(documents):
            if self.of == "document":
                yield Passage(index, self.split(text), text, ends=True)
                continue
            stretches = [(split, "".join(run)) for split, run in groupby(sections(text), key=self.split)]
            for number, (split, stretch) in enumerate(stretches, start=1):
                yield Passage(index, split, stretch, ends=number == len(stretches))


def divide_tokens(read: Callable[[], Iterable[np.ndarray]], validation_fraction: float, seed: int):
    """As `choose_division`, of documents that are arrays of tokens. Raises UserError where all are copies of one."""
    documents = (document.tobytes() for document in read())
    division, note = _choose("document", documents, int(validation_fraction * 2**64), seed)
    if division is None:
        raise UserError("a single document of tokens, which cannot be divided: is an end of text behind each?")
    return division, note


def choose_division(
    read: Callable[[], Iterable[str]], validation_fraction: float, seed: int
) -> tuple[Division, str]:
    """The division of the documents that `read()` gives anew each time, and a line that says in what it is unusual.

    Of a large corpus only the first documents are read: until there is one for each split.
    """
    limit = int(validation_fraction * 2**64)
    division, note = _choose("document", read(), limit, seed)
    if division is not None:
        return division, note
    text = next(iter(read()), "")
    division, note = _choose("section", sections(text), limit, seed)
    stretches = "a single document: held-out stretches of it border on training text"
    return division or Division("section", seed, limit, None), f"{stretches}; {note}" if note else stretches


def _choose(of: str, texts: Iterable[str | bytes], limit: int, seed: int) -> tuple[Division | None, str]:
    """None where no division of whole texts gives both splits something: all are copies of one."""
    lengths = {}
    held_out = trained_on = False
    for text in texts:
        number = _hash(seed, text)
        lengths[number] = len(text)
        held_out, trained_on = held_out or number < limit, trained_on or number >= limit
        if held_out and trained_on:
            return Division(of, seed, limit, None), ""
    if len(lengths) < 2:
        return None, ""
    middle = sorted(lengths, key=lambda number: (lengths[number], number))[(len(lengths) - 1) // 2]
    empty = "train" if held_out else "validation"
    return Division(of, seed, limit, middle), f"no {of} fell to {empty} by its hash: the one of middle length does"


def _hash(seed: int, text: str | bytes) -> int:
    """0 to 2**64 - 1."""
    content = text if isinstance(text, bytes) else text.encode()
    return int.from_bytes(hashlib.blake2b(f"{seed}/".encode() + content, digest_size=8).digest(), "big")
