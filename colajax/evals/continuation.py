"""How well a model continues held-out text: the first token after a prefix, against counts of the training tokens, and,
on the story corpus, whether the grammar accepts what was written."""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from colajax.data.records import Records
from colajax.data.tokenizer import Tokenizer
from colajax.sampling.base import BaseSampler
from colajax.sampling.settings import SamplingSettings
from colajax.stories.checker import check_story, keeps_prefix


class Prefix(NamedTuple):
    """The head of a held-out document and what follows it there, token ids."""

    tokens: list[int]
    rest: list[int]


def held_out_prefixes(records: Records, count: int, *, shortest: int, rest: int, seed: int = 0) -> list[Prefix]:
    """`count` prefixes: rows' first documents cut at random, with at least `shortest` tokens before the cut and `rest`
    after it. Rows come in order, from the first again with other cuts when there are fewer than `count`; none where no
    document is long enough."""
    random, metadata = np.random.default_rng(seed), records.metadata["tokenizer"]
    first = (_first_document(records[i], metadata["eos_id"], metadata["pad_id"]) for i in range(len(records)))
    documents = list(itertools.islice((d for d in first if len(d) >= shortest + rest), count))
    prefixes = []
    for i in range(count if documents else 0):
        document = documents[i % len(documents)]
        cut = int(random.integers(shortest, len(document) - rest + 1))
        prefixes.append(Prefix(document[:cut], document[cut:]))
    return prefixes


def _first_document(row: np.ndarray, eos_id: int, pad_id: int) -> list[int]:
    ends = np.flatnonzero((row == eos_id) | (row == pad_id))
    return row[: ends[0] if len(ends) else len(row)].tolist()


COUNTED_ROWS = 100_000  # as many training rows as there are counts made over; the first ones of a larger corpus


class Counts(NamedTuple):
    """The best next token by counts over training rows: `unigram`, and after each token, `bigram` (V,)."""

    unigram: int
    bigram: np.ndarray


def count_tokens(records: Records, vocab_size: int) -> Counts:
    """Counts over the first COUNTED_ROWS rows of the training split; pairs with padding do not count."""
    pad_id = records.metadata["tokenizer"]["pad_id"]
    rows = records.read(range(min(len(records), COUNTED_ROWS))).astype(np.int64)
    text = rows[rows != pad_id]
    unigram = int(np.bincount(text, minlength=vocab_size).argmax())
    first, second = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    kept = second != pad_id
    pairs, counts = np.unique(first[kept] * vocab_size + second[kept], return_counts=True)
    bigram = np.full(vocab_size, unigram)
    order = np.argsort(counts, kind="stable")  # the most frequent pair of each first token is written last
    bigram[pairs[order] // vocab_size] = pairs[order] % vocab_size
    return Counts(unigram, bigram)


def first_token_accuracy(prefixes: list[Prefix], predicted: list[int]) -> float:
    """Share of prefixes whose first following token is the predicted one."""
    return float(np.mean([prefix.rest[0] == token for prefix, token in zip(prefixes, predicted, strict=True)]))


class StoryScore(NamedTuple):
    """Shares of continuations: accepted as whole stories; keeping to the names and things of their prefix; both."""

    accepted: float
    keeps_prefix: float
    both: float


def score_stories(prefixes: list[Prefix], continuations: list[list[int]], tokenizer: Tokenizer) -> StoryScore:
    """Checks prefix + continuation, as text, with the grammar that wrote the corpus."""
    accepted, kept = [], []
    for prefix, continuation in zip(prefixes, continuations, strict=True):
        story = tokenizer.decode(prefix.tokens + continuation)
        accepted.append(check_story(story).accepted)
        kept.append(keeps_prefix(tokenizer.decode(prefix.tokens), story))
    both = [a and k for a, k in zip(accepted, kept, strict=True)]
    return StoryScore(float(np.mean(accepted)), float(np.mean(kept)), float(np.mean(both)))


def continue_prefixes(
    sampler: BaseSampler, prefixes: list[Prefix], settings: SamplingSettings, *, length: int, batch_size: int = 125
) -> list[list[int]]:
    """Continuations of every prefix up to `length` tokens with the prefix, or to the end token.

    Prefixes of like length go together, since a batch runs until its shortest prefix has grown to `length`."""
    order = sorted(range(len(prefixes)), key=lambda i: len(prefixes[i].tokens))
    answers: list[list[int]] = [[] for _ in prefixes]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        budget = length - len(prefixes[chosen[0]].tokens)
        batch = sampler.generate(
            [prefixes[i].tokens for i in chosen], dataclasses.replace(settings, max_new_tokens=budget),
            sample_indices=chosen,
        )  # fmt: skip
        for i, answer in zip(chosen, batch, strict=True):
            answers[i] = answer[: length - len(prefixes[i].tokens)]
    return answers
