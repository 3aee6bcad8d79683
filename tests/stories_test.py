"""Stories and their checker against a slow enumeration of a small world, and the figures that the corpus promises."""

import hashlib
import itertools
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colajax.data.jsonl import write_jsonl
from colajax.errors import UserError
from colajax.stories.checker import KEPT, check_story, keeps_prefix, next_words
from colajax.stories.grammar import KINDS, ROLES, WORDS, WORLD, World, generate_story, stories

WOMEN = {"Anna", "Lucy"}
FEW = {
    "name": ("Anna", "Lucy", "Tom", "Ben"),
    "place": ("river", "hill"),
    "animal": ("dog", "cat"),
    "colour": ("red", "blue"),
    "object": ("hat", "cup"),
    "weather": ("rainy", "sunny"),
    "crop": ("plums", "beans"),
    "day": ("Monday", "Tuesday"),
}
SMALL = World({kind: {word: WORDS[kind][word] for word in few} for kind, few in FEW.items()}, WORLD.kinds)
SEEDS = st.integers(0, 2**64)


def enumerate_stories(kind: str) -> set[str]:
    """All stories of a kind in the small world: every wording with every assignment, filled in as plain text."""
    found = set()
    for wordings in itertools.product(*KINDS[kind]):
        template = " ".join(wordings)
        roles = sorted(set(re.findall(r"\{(\w+)", template)))
        for words in itertools.product(*(FEW[ROLES[role]] for role in roles)):
            bound = dict(zip(roles, words, strict=True))
            if len(set(words)) < len(words) or (bound["hero"] in WOMEN) == (bound["friend"] in WOMEN):
                continue
            text = template
            for role, word in bound.items():
                text = text.replace(f"{{{role}}}", word)
                for form, spelling in WORDS[ROLES[role]][word].items():
                    text = text.replace(f"{{{role}.{form}}}", spelling)
            found.add(text)
    return found


ALL = {kind: enumerate_stories(kind) for kind in KINDS}
EVERY = set().union(*ALL.values())
# Sorted, so that a failing example is the same in every process.
SAMPLES = [story for kind in KINDS for story in random.Random(0).sample(sorted(ALL[kind]), 20)]
WORDS_AND_MARKS = sorted(set(re.findall(r"\w+|[.,]", " ".join(SAMPLES))))


def joined(tokens: list[str]) -> str:
    return " ".join(tokens).replace(" .", ".").replace(" ,", ",")


@st.composite
def damaged_stories(draw) -> str:
    """A story with one thing changed: a token or a sentence replaced, dropped, doubled or moved."""
    story = draw(st.sampled_from(SAMPLES))
    if draw(st.booleans()):
        parts, others, rebuild = re.findall(r"\w+|[.,]", story), WORDS_AND_MARKS, joined
    else:
        sentences = [re.findall(r"[^.]+\.", other) for other in SAMPLES]
        others, rebuild = [s.strip() for several in sentences for s in several], " ".join
        parts = [s.strip() for s in re.findall(r"[^.]+\.", story)]
    place, target = draw(st.integers(0, len(parts) - 1)), draw(st.integers(0, len(parts) - 1))
    part = parts.pop(place)
    match draw(st.sampled_from(("replace", "drop", "double", "move"))):
        case "replace":
            parts.insert(place, draw(st.sampled_from(others)))
        case "double":
            parts[place:place] = [part, part]
        case "move":
            parts.insert(target, part)
    return rebuild(parts)


def test_every_enumerated_story_is_accepted_with_its_kind():
    for kind, found in ALL.items():
        for story in random.Random(0).sample(sorted(found), 250):
            check = check_story(story, SMALL)
            assert (check.accepted, check.kind, check.reason) == (True, kind, "")


def test_the_generator_writes_all_enumerated_stories_and_no_other():
    rng = random.Random(0)
    drawn = [generate_story(rng, SMALL) for _ in range(12_000)]
    assert set(drawn) <= EVERY
    # 2000 uniform draws from each kind: the smallest kind, 256 stories, comes out whole.
    assert ALL["harvest"] <= set(drawn)


@settings(max_examples=600, deadline=None)
@given(damaged_stories())
def test_a_damaged_story_is_accepted_exactly_when_it_is_another_story(text):
    check = check_story(text, SMALL)
    assert check.accepted == (text in EVERY)
    assert bool(check.reason) != check.accepted
    assert "\n" not in check.reason


@pytest.mark.parametrize("kind", KINDS)
def test_every_single_word_change_of_a_story(kind):
    tokens = re.findall(r"\w+|[.,]", sorted(ALL[kind])[0])
    for place, word in itertools.product(range(len(tokens)), WORDS_AND_MARKS):
        text = joined([*tokens[:place], word, *tokens[place + 1 :]])
        assert check_story(text, SMALL).accepted == (text in EVERY), text


@settings(deadline=None)
@given(SEEDS)
def test_a_generated_story_is_accepted_and_its_facts_are_in_it(seed):
    story = generate_story(random.Random(seed))
    check = check_story(story)
    assert check.accepted, check.reason
    assert set(check.facts.values()) <= set(re.findall(r"\w+", story))
    assert check.kind in KINDS


GIFT = (
    "Anna and her cat lived near the mill. Ben, her friend, lived near the lake. She made a red hat for him. "
    "Then she and the cat walked from the mill to the lake. "
    "Ben was very happy, took the red hat and gave the cat fish."
)


def test_facts():
    check = check_story(GIFT)
    assert (check.accepted, check.kind) == (True, "gift")
    assert check.facts == {
        "hero": "Anna",
        "animal": "cat",
        "place": "mill",
        "friend": "Ben",
        "far": "lake",
        "colour": "red",
        "object": "hat",
    }


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("She made", "He made", "token 20: expected She, found He"),
        ("gave the cat fish", "gave the cat hay", "token 54: expected fish, found hay"),
        ("took the red hat", "took the blue hat", "token 48: expected red, found blue"),
        ("to the lake. Ben", "to the lake. Anna", "token 41: expected Ben, found Anna"),
        ("Then she and the cat walked from the mill to the lake. ", "", "token 28: expected Then, found Ben"),
        (" and gave the cat fish.", "", "token 50: expected and, found the end"),
        ("fish.", "fish. Ben", "token 56: expected the end, found Ben"),
        ("near the lake. She", "near the lake.  She", "white space"),
        ("fish.", "fish.\n", "white space"),
    ],
)
def test_a_fault_is_named(old, new, reason):
    assert GIFT.count(old) == 1
    check = check_story(GIFT.replace(old, new))
    assert not check.accepted
    assert check.reason.startswith(reason)


@pytest.mark.parametrize(("old", "new"), [("red", "white"), ("Ben", "Tom"), ("made a", "found a"), ("lake", "castle")])
def test_a_change_made_everywhere_is_another_story(old, new):
    assert check_story(GIFT.replace(old, new)).accepted


def test_empty_text_is_no_story():
    assert not check_story("").accepted


def test_stories_of_a_seed_are_known():
    digest = hashlib.sha256("\n".join(stories(0, 100)).encode()).hexdigest()
    assert digest == "a0dc0efce67813f6a9d2498983094bc9d115d5ebe3eaddf826d15e45c8ec5165"


def test_stories_are_distinct_and_keep_the_promised_sizes():
    made = list(stories(1, 3000))
    assert len(set(made)) == 3000
    tokens = [re.findall(r"\w+|[.,]", story) for story in made]
    assert {len(story) for story in tokens} <= set(range(38, 61))
    assert {story.count(".") for story in tokens} <= {4, 5, 6}
    assert len(set(itertools.chain(*tokens))) == 146


CUT = GIFT.index(" hat for him")  # after "... She made a red"


@pytest.mark.parametrize(
    ("rest", "keeps"),
    [
        (GIFT[CUT:], True),
        (" hat. hat Ben gave gave", True),  # no grammar, nothing new
        (" ring for him. Ben took the ring", True),  # the object is still open
        (" ring for him. Ben took the hat", False),  # but there is one only
        (" hat for Lucy", False),
        (" hat for Tom", False),
        (" hat for him. Then she walked from the mill to the tower", False),
        (" hat. Ben took the blue hat", False),
        (" hat. Ben gave the dog fish", False),
        ("dish hat", True),  # the cut splits a word: "reddish" is nobody's
    ],
)
def test_keeps_prefix_by_hand(rest, keeps):
    assert keeps_prefix(GIFT[:CUT], GIFT[:CUT] + rest) is keeps


def test_an_open_second_person_is_of_the_other_gender():
    prefix = "Anna had a red hat, and"
    assert keeps_prefix(prefix, prefix + " Ben had a blue cup.")
    assert not keeps_prefix(prefix, prefix + " Lucy had a blue cup.")
    assert not keeps_prefix(prefix, prefix + " Ben had a blue cup. Tom")


def test_another_beginning_keeps_nothing():
    assert not keeps_prefix("Anna", "Ben and his cat")


def test_nothing_keeps_a_prefix_of_no_story():
    assert not keeps_prefix("Anna sat", "Anna sat down")


@settings(deadline=None)
@given(SEEDS, st.data())
def test_a_story_keeps_each_of_its_beginnings(seed, data):
    story = generate_story(random.Random(seed))
    cut = data.draw(st.integers(0, len(story)))
    assert keeps_prefix(story[:cut], story)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SAMPLES), st.sampled_from(SAMPLES), st.data())
def test_keeps_prefix_means_that_a_story_with_the_prefix_has_the_words(first, second, data):
    tokens, others = re.findall(r"\w+|[.,]", first), re.findall(r"\w+|[.,]", second)
    prefix = joined(tokens[: data.draw(st.integers(1, len(tokens)))])
    rest = others[data.draw(st.integers(0, len(others) - 1)) :]
    kept = {word for name in KEPT for word in FEW[name]} & {*rest, *re.findall(r"\w+", prefix)}
    expected = any(story.startswith(prefix) and kept <= set(re.findall(r"\w+", story)) for story in EVERY)
    assert keeps_prefix(prefix, f"{prefix} {joined(rest)}", SMALL) == expected


def test_a_corpus_is_a_story_a_line(tmp_path):
    path = tmp_path / "new" / "stories.jsonl"
    write_jsonl(path, stories(5, 20))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": story} for story in stories(5, 20)]
    assert list(path.parent.iterdir()) == [path]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_next_words_are_those_of_all_stories_that_begin_so(story, data):
    tokens = re.findall(r"\w+|[.,]", story)
    begun = tokens[: data.draw(st.integers(0, len(tokens)))]
    beginning = joined(begun)
    longer = [re.findall(r"\w+|[.,]", other) for other in EVERY if other.startswith(beginning) and other != beginning]
    expected = {other[len(begun)] for other in longer if other[: len(begun)] == begun}
    assert next_words(begun, SMALL) == expected
    assert next_words([*begun, "nobody"], SMALL) == set()


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "texts.jsonl"
    write_jsonl(path, ["old é"])

    def interrupted():
        yield "new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, interrupted())
    assert path.read_text(encoding="utf-8") == '{"text": "old é"}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_jsonl(tmp_path / "file" / "texts.jsonl", ["a"])
