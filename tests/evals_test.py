"""Evaluation of continuations, against slow counts and stories that are known to be right or wrong."""

import itertools
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from colajax.data.jsonl import write_jsonl
from colajax.data.prepare import prepare
from colajax.data.records import Records
from colajax.data.tokenizer import train_sentencepiece
from colajax.evals import continuation as cont
from colajax.sampling.settings import SamplingSettings
from colajax.stories.grammar import stories, tokens_of

PAD, EOS, VOCABULARY = 0, 1, 7


class Rows:
    """Records in memory."""

    def __init__(self, rows, pad_id=PAD, eos_id=EOS):
        self.rows = [np.asarray(row, np.int32) for row in rows]
        self.metadata = {"tokenizer": {"pad_id": pad_id, "eos_id": eos_id}}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def read(self, indices):
        return np.stack([self.rows[index] for index in indices])


def slow_counts(rows):
    """(how often each token comes, how often each follows each), padding left out."""
    unigrams, bigrams = Counter(), {}
    for row in rows:
        text = [int(token) for token in row if token != PAD]
        unigrams.update(text)
        for first, second in itertools.pairwise(text):
            bigrams.setdefault(first, Counter())[second] += 1
    return unigrams, bigrams


@st.composite
def packed_rows(draw):
    """Rows of 8: text without padding, then padding to the end."""
    texts = draw(st.lists(st.lists(st.integers(EOS, VOCABULARY - 1), min_size=1, max_size=8), min_size=1, max_size=8))
    return [text + [PAD] * (8 - len(text)) for text in texts]


@hypothesis.given(rows=packed_rows())
@hypothesis.settings(deadline=None)
def test_counts_are_the_most_frequent(rows):
    found = cont.count_tokens(Rows(rows), VOCABULARY)
    unigrams, bigrams = slow_counts(rows)
    assert unigrams[found.unigram] == max(unigrams.values())  # one of them where several are as frequent
    assert found.bigram.shape == (VOCABULARY,)
    for token, best in enumerate(found.bigram.tolist()):
        if token in bigrams:
            assert bigrams[token][best] == max(bigrams[token].values())
        else:
            assert best == found.unigram


@pytest.fixture(scope="module")
def held_out(records):
    return Records.open(records, "validation")


def first_document(row, metadata):
    ids = row.tolist()
    ends = [ids.index(end) for end in (metadata["eos_id"], metadata["pad_id"]) if end in ids]
    return ids[: min(ends, default=len(ids))]


def test_prefixes_are_heads_of_the_rows_first_documents(held_out):
    shortest, rest = 5, 7
    prefixes = cont.held_out_prefixes(held_out, 150, shortest=shortest, rest=rest)
    documents = [first_document(held_out[i], held_out.metadata["tokenizer"]) for i in range(len(held_out))]
    long_enough = [document for document in documents if len(document) >= shortest + rest]
    assert 0 < len(long_enough) < len(prefixes) == 150
    for i, prefix in enumerate(prefixes):
        assert prefix.tokens + prefix.rest == long_enough[i % len(long_enough)]
        assert len(prefix.tokens) >= shortest
        assert len(prefix.rest) >= rest
    cuts = {len(prefix.tokens) for prefix in prefixes}
    assert {shortest, max(map(len, long_enough)) - rest} <= cuts  # both ends come about
    assert prefixes[0] != prefixes[len(long_enough)] or prefixes[1] != prefixes[len(long_enough) + 1]


def test_prefixes_repeat_with_the_seed_alone(held_out):
    def draw(count, seed):
        return cont.held_out_prefixes(held_out, count, shortest=5, rest=5, seed=seed)

    assert draw(20, 1) == draw(40, 1)[:20]
    assert draw(20, 1) != draw(20, 2)


def test_rows_that_are_too_short_give_no_prefix():
    rows = Rows([[2, 3, 4, EOS, 5, 5, 5, 5], [2, 3, PAD, PAD, PAD, PAD, PAD, PAD], [2, 3, 4, 5, 6, 2, 3, 4]])
    assert cont.held_out_prefixes(rows, 3, shortest=4, rest=4) == [([2, 3, 4, 5], [6, 2, 3, 4])] * 3
    assert cont.held_out_prefixes(rows, 3, shortest=5, rest=4) == []


def test_first_token_accuracy_is_the_share_of_right_first_tokens():
    prefixes = [cont.Prefix([2, 3], [token, 6]) for token in (4, 5, 6, 2)]
    assert cont.first_token_accuracy(prefixes, [4, 5, 6, 2]) == 1
    assert cont.first_token_accuracy(prefixes, [4, 6, 6, -1]) == 0.5
    assert cont.first_token_accuracy(prefixes, [6, 6, 2, 6]) == 0
    with pytest.raises(ValueError, match="zip"):
        cont.first_token_accuracy(prefixes, [4])


@pytest.fixture(scope="module")
def whole_stories(tmp_path_factory):
    """(tokenizer, prefixes of whole stories with at least 8 tokens, cut before their last third)"""
    folder = tmp_path_factory.mktemp("whole")
    write_jsonl(folder / "stories.jsonl", stories(5, 60))
    tokenizer = train_sentencepiece(stories(5, 60), folder / "t.model", 480)
    prepare([folder / "stories.jsonl"], tokenizer.path, folder / "records", 160, validation_fraction=0.5)
    prefixes = cont.held_out_prefixes(Records.open(folder / "records", "validation"), 12, shortest=30, rest=20)
    assert len(prefixes) == 12
    return tokenizer, prefixes


def test_true_continuations_score_one(whole_stories):
    tokenizer, prefixes = whole_stories
    assert cont.score_stories(prefixes, [prefix.rest for prefix in prefixes], tokenizer) == (1, 1, 1)


def test_damaged_continuations_score_by_their_damage(whole_stories):
    tokenizer, prefixes = whole_stories
    short = cont.score_stories(prefixes, [prefix.rest[:-1] for prefix in prefixes], tokenizer)
    assert short == (0, 1, 0)  # a story that breaks off is none, but says nothing against its prefix
    twice = cont.score_stories(prefixes, [prefix.rest + prefix.rest for prefix in prefixes], tokenizer)
    assert twice.accepted == 0

    everything = " Anna Adam Ben Clara river hill forest lake dog cat goat hen red blue green ball kite hat drum."
    against = [prefix.rest + tokenizer.encode(everything) for prefix in prefixes]
    assert cont.score_stories(prefixes, against, tokenizer) == (0, 0, 0)

    half = [prefix.rest if i % 2 else against[i] for i, prefix in enumerate(prefixes)]
    assert cont.score_stories(prefixes, half, tokenizer) == (0.5, 0.5, 0.5)


def test_a_true_story_with_another_beginning_keeps_to_nothing(whole_stories):
    """Both figures are needed: a whole story that starts anew after the prefix, and one in other words."""
    tokenizer, prefixes = whole_stories
    others = list(stories(99, len(prefixes)))
    score = cont.score_stories(prefixes, [tokenizer.encode(" " + other) for other in others], tokenizer)
    assert score.accepted == 0
    assert score.keeps_prefix < 0.3
    assert all(len(tokens_of(other)) > 50 for other in others)


class Parrot:
    """Stands for a sampler: continues each prompt with its last token, and notes how it was asked."""

    def __init__(self):
        self.calls = []

    def generate(self, prompts, settings, sample_indices):
        self.calls.append((prompts, settings.max_new_tokens, list(sample_indices)))
        return [[prompt[-1]] * settings.max_new_tokens for prompt in prompts]


def test_continuations_reach_the_length_and_come_back_in_order():
    prefixes = [cont.Prefix([*range(2, 2 + length)], [9]) for length in (5, 2, 7, 3, 6)]
    parrot = Parrot()
    answers = cont.continue_prefixes(parrot, prefixes, SamplingSettings(steps=3), length=8, batch_size=2)
    for prefix, answer in zip(prefixes, answers, strict=True):
        assert answer == [prefix.tokens[-1]] * (8 - len(prefix.tokens))
    # By length; a sample's noise goes by its place among all prefixes, so that batches change nothing.
    assert [indices for _, _, indices in parrot.calls] == [[1, 3], [0, 4], [2]]
    assert [budget for _, budget, _ in parrot.calls] == [6, 3, 1]
