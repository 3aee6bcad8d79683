"""Mixtures: which rows of several records folders make a batch, by weights that may change at a step."""

import ast
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from etils import epath

from colajax.data.records import Records, digest
from colajax.data.tokenizer import Tokenizer
from colajax.errors import UserError

LONGEST_PERIOD = 100_000  # rows after which the order of the sources begins again
EXPECTED = (
    "expected a folder made by tools/prepare_data.py, or weights by folder from a step on: "
    "((0, {DIR: WEIGHT, ...}), (STEP, {...}), ...)"
)


class Entry(NamedTuple):
    """From batch `step` on the rows of each folder come in the ratio of these whole numbers."""

    step: int
    weights: dict[str, int]


def schedule_of(records: epath.PathLike) -> tuple[Entry, ...]:
    """What config.records says: a folder, or the text of a schedule, that starts with a bracket. Raises UserError."""
    text = os.fspath(records).strip()
    if not text:
        raise UserError(f"config.records: {EXPECTED}; pass --config.records=DIR")
    if not text.startswith("("):
        return (Entry(0, {text: 1}),)
    try:
        entries = ast.literal_eval(text)
        steps = [step for step, _ in entries]
        whole = all(type(step) is int for step in steps) and all(
            isinstance(weights, dict) and weights and all(isinstance(folder, str) and folder for folder in weights)
            for _, weights in entries
        )
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        whole = False
    if not whole or not entries:
        raise UserError(f"config.records is {text[:200]}: {EXPECTED}")
    if steps[0] != 0 or any(later <= step for step, later in pairwise(steps)):
        raise UserError(f"config.records: begins at steps {steps}: expected 0 first, and then later ones")
    return tuple(Entry(step, _whole_weights(step, weights)) for step, weights in entries)


def folders_of(schedule: Sequence[Entry]) -> list[str]:
    """Every folder that it names, once."""
    return list(dict.fromkeys(folder for entry in schedule for folder in entry.weights))


def _whole_weights(step: int, weights: dict[str, float]) -> dict[str, int]:
    """The smallest whole numbers with the same ratios."""
    numbers = weights.values()
    sound = all(type(weight) in (int, float) and math.isfinite(weight) and weight >= 0 for weight in numbers)
    if not sound or not any(numbers):
        raise UserError(f"config.records: the weights of step {step} are {weights}: expected numbers from 0, not all 0")
    exact = [Fraction(str(weight)) for weight in numbers]  # what is written, not its nearest binary number
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    whole = [weight // math.gcd(*whole) for weight in whole]
    if sum(whole) > LONGEST_PERIOD:
        raise UserError(
            f"config.records: the weights of step {step} are {weights}: shares of {sum(whole):,} parts; expected at "
            f"most {LONGEST_PERIOD:,}; round them"
        )
    return dict(zip(weights, whole, strict=True))


class Interleaving:
    """An endless row of sources in which each has its exact share of every period, and at most about a row more or less
    of any beginning. (grain.MapDataset.mix rounds shares to a hundredth of the smallest.)"""

    def __init__(self, weights: Sequence[int]):
        """weights: whole numbers from 0; their sum is the period."""
        self.weights, self._period = np.array(weights), sum(weights)
        due, chosen = np.zeros(len(weights), np.int64), np.zeros(self._period, np.int64)
        for place in range(self._period):
            due += self.weights
            chosen[place] = source = due.argmax()
            due[source] -= self._period
        self._chosen = chosen
        self._before = np.zeros((self._period + 1, len(weights)), np.int64)
        np.cumsum(chosen[:, None] == np.arange(len(weights)), axis=0, out=self._before[1:])

    def counts(self, places: int) -> np.ndarray:
        """How many of the first so many places each source has."""
        periods, rest = divmod(places, self._period)
        return periods * self.weights + self._before[rest]

    def at(self, place: int) -> tuple[int, int]:
        """The source of a place, and how many that one has had before."""
        source = int(self._chosen[place % self._period])
        return source, int(self.counts(place)[source])


class Sources:
    """The rows of several records folders, one folder's after the other's: len(sources), read. What every row is made
    with, metadata's sequence_length and tokenizer, is the same in all."""

    def __init__(self, folders: Sequence[epath.PathLike], split: str, damaged: str, *, check: bool):
        """Raises UserError as `Records.open`, and where folders have other tokenizers or lengths."""
        self._of = [Records.open(folder, split, damaged, check=check) for folder in folders]
        self.split, self.metadata = split, self._of[0].metadata
        for folder, records in zip(folders, self._of, strict=True):
            for what, found, expected in (
                ("rows of another length", records.metadata["sequence_length"], self.metadata["sequence_length"]),
                ("another tokenizer", records.metadata["tokenizer"]["digest"], self.metadata["tokenizer"]["digest"]),
            ):
                if found != expected:
                    raise UserError(
                        f"{folder}: {what} than {folders[0]} ({str(found)[:12]}, {str(expected)[:12]}); prepare them "
                        f"alike"
                    )
        ends = np.cumsum([len(records) for records in self._of]).tolist()
        self.rows = [range(end - len(records), end) for end, records in zip(ends, self._of, strict=True)]
        self.digests = [digest(records.metadata) for records in self._of]

    def __len__(self) -> int:
        return self.rows[-1].stop

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """int32 [len(indices), sequence_length]."""
        begun = []
        for records, rows in zip(self._of, self.rows, strict=True):
            if places := [place for place, index in enumerate(indices) if index in rows]:
                begun.append((places, records.begin([indices[place] - rows.start for place in places])))
        found = np.empty((len(indices), self.metadata["sequence_length"]), np.int32)
        for places, finish in begun:
            found[places] = finish()
        return found

    def tokenizer(self) -> Tokenizer:
        """See `Records.tokenizer`."""
        return self._of[0].tokenizer()


def names_of(folders: Sequence[str]) -> list[str]:
    """By which figures are told apart: the folders' last names, or where two have the same one, all of their paths."""
    names = [epath.Path(folder).name for folder in folders]
    return names if len(set(names)) == len(names) else list(folders)


def identity_of(schedule: Sequence[Entry], digests: dict[str, str]) -> str | list:
    """What decides a run's rows, as JSON has it: one folder's digest, or [[step, [[digest, weight], ...]], ...]."""
    return _shortest(
        [[step, [[digests[folder], weight] for folder, weight in weights.items()]] for step, weights in schedule]
    )


def _shortest(entries: list) -> str | list:
    (_, sources), *others = entries
    return sources[0][0] if len(sources) == 1 and not others else entries


def met(identity: str | list, batches: int) -> str | list:
    """The part of an identity that so many batches were made by; of none, its beginning."""
    if isinstance(identity, str):
        return identity
    return _shortest([entry for entry in identity if entry[0] < max(batches, 1)])
