"""Packing against a slow best fit that looks at every bin, and what must hold of any packing."""

import collections

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colajax.data.packing import SECTION_BYTES, best_fit, pack, sections

EOS, PAD = 1, 0


def _slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The spaces left in the bins of best-fit-decreasing, sorted."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else capacity) - length)
    return sorted(spaces)


@st.composite
def _lengths_and_capacity(draw):
    capacity = draw(st.integers(1, 70))
    return draw(st.lists(st.integers(1, capacity), max_size=60)), capacity


@given(_lengths_and_capacity())
def test_best_fit_is_the_slow_best_fit(lengths_and_capacity):
    lengths, capacity = lengths_and_capacity
    bins = best_fit(lengths, capacity)
    assert sorted(capacity - sum(lengths[i] for i in members) for members in bins) == _slow_best_fit(lengths, capacity)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert bins == sorted(sorted(members) for members in bins)


def test_best_fit_prefers_the_tightest_space():
    # 6 and 5 open two bins of 10; 4 fits both and goes to the one it fills; 3 then has only the other.
    assert best_fit([5, 6, 4, 3], 10) == [[0, 3], [1, 2]]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(2, 16))
def test_no_token_is_lost_doubled_or_moved(lengths, sequence_length):
    # Every token of every document is another number, so each can be followed.
    starts = np.cumsum([2, *lengths])
    documents = [np.arange(start, start + n) for start, n in zip(starts, lengths, strict=False)]
    packed = pack(documents, sequence_length, EOS, PAD)
    assert packed.rows.dtype == np.uint32
    assert packed.rows.shape[1:] == (sequence_length,)

    placed = [row[row != PAD].tolist() for row in packed.rows]
    for row, tokens in zip(packed.rows, placed, strict=True):
        assert row[: len(tokens)].tolist() == tokens  # padding only at the end
        assert tokens
    expected = collections.Counter(t for document in documents for t in [*document.tolist(), EOS])
    assert collections.Counter(t for tokens in placed for t in tokens) == expected
    assert packed.tokens == sum(expected.values())
    assert packed.cut == sum(max(0, n + 1 - sequence_length) for n in lengths)

    row_text = [" " + " ".join(map(str, tokens)) + " " for tokens in placed]
    for document in documents:
        whole = [*document.tolist(), EOS]
        pieces = [whole[i : i + sequence_length] for i in range(0, len(whole), sequence_length)]
        for piece in pieces:  # in one row, in order, uncut
            assert any(" " + " ".join(map(str, piece)) + " " in text for text in row_text)


def test_packing_a_known_case():
    documents = [np.array([11, 12]), np.array([21, 22, 23, 24, 25, 26]), np.array([31])]
    packed = pack(documents, 4, EOS, PAD)
    assert packed.rows.tolist() == [[11, 12, EOS, 0], [21, 22, 23, 24], [25, 26, EOS, 0], [31, EOS, 0, 0]]
    assert (packed.tokens, packed.cut) == (12, 3)
    assert pack([np.array([11]), np.array([21])], 4, EOS, PAD).rows.tolist() == [[11, EOS, 21, EOS]]


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=30), st.integers(2, 16))
def test_what_does_not_end_has_no_end_of_text_and_nothing_after_it(documents, sequence_length):
    starts = np.cumsum([2, *(length for length, _ in documents)])
    tokens = [np.arange(start, start + length) for start, (length, _) in zip(starts, documents, strict=False)]
    unfinished = {index for index, (_, ends) in enumerate(documents) if not ends}
    packed = pack(tokens, sequence_length, EOS, PAD, unfinished)
    assert (packed.rows == EOS).sum() == len(documents) - len(unfinished)
    assert packed.tokens == (packed.rows != PAD).sum()
    rows = {tuple(row[row != PAD].tolist()) for row in packed.rows}
    for index in unfinished:
        text = tokens[index].tolist()
        assert all(tuple(text[i : i + sequence_length]) in rows for i in range(0, len(text), sequence_length))


def test_short_documents_leave_almost_no_padding():
    lengths = np.random.default_rng(0).geometric(1 / 60, 20_000).clip(1, 511)
    packed = pack([np.full(n, 7) for n in lengths], 512, EOS, PAD)
    assert packed.cut == 0
    assert len(packed.rows) == -(-(lengths.sum() + len(lengths)) // 512)  # not one row more than the tokens need


@given(st.lists(st.text(alphabet="ab é日😀\n", max_size=40), max_size=12), st.sampled_from([" ", "\n", "\n\n", ""]))
def test_sections_are_the_text_and_never_too_long(words, separator):
    text = separator.join(word * 100 for word in words) * 3
    divided = list(sections(text))
    assert "".join(divided) == text
    assert all(len(section.encode()) <= SECTION_BYTES for section in divided)
    if len(text.encode()) <= SECTION_BYTES:
        assert divided == [text]


def test_sections_end_at_the_largest_boundary_there_is():
    def first(*blocks):
        return next(sections("".join(blocks) + "x" * SECTION_BYTES))

    a = "a" * (SECTION_BYTES // 2)
    assert first(a, "\n\n", "b\n", "c ") == a + "\n\n"
    assert first(a, " d", "\n", "b c ") == a + " d\n"
    assert first(a, " d", " ", "b") == a + " d "
    assert first("\n\n", a) == "\n\n" + a + "x" * (SECTION_BYTES // 2 - 2)  # a boundary too early is none
    assert first("é" * SECTION_BYTES) == "é" * (SECTION_BYTES // 2)
    assert first("a", "é" * SECTION_BYTES) == "a" + "é" * (SECTION_BYTES // 2 - 1)  # not inside a character
