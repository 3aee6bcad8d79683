"""Questions about stories, in the formats of the eight tasks: who, where, order, cloze, ending, copying, recall.

Of all (hero, friend, place) every eighth is held out, by a hash: probes are about those, and a corpus made with
`probe_corpus` in mind has none of them together. What follows from a class of words (what an animal eats, what is made
of a crop, ...) is asked in a corpus of every second word alone; of the others the stories tell it.
"""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from colajax.stories.checker import KEPT, next_words
from colajax.stories.grammar import ROLES, WORDS, WORLD, Slot, Story, make_story, spelled, text_of, tokens_of

HELD_OUT = 8  # one in so many
FAR_BACK = 16  # tokens since a word was last mentioned that is to be copied


class Probe(NamedTuple):
    """choices: none, or the options in the order to show them, of which `answer` is one."""

    question: str
    answer: str
    choices: Sequence[str] = ()
    context: str = ""


# Kind of story -> (question, answer): one word of the story, or two.
WHO_WHERE = {
    "lost, found by the animal": (
        ("Who lost the {object}?", "{hero}"),
        ("Who lived near the {place}?", "{hero}"),
        ("Where did {hero} live?", "near the {place}"),
        ("Who found the {object}?", "the {animal}"),
        ("What colour was the {object}?", "{colour}"),
    ),
    "lost, found by the friend": (
        ("Who lost the {object}?", "{hero}"),
        ("Who found the {object}?", "{friend}"),
        ("Where did {hero} live?", "near the {place}"),
        ("Which animal did {hero} have?", "a {animal}"),
        ("What colour was the {object}?", "{colour}"),
    ),
    "gift": (
        ("Where did {friend} live?", "near the {far}"),
        ("Where did {hero} live?", "near the {place}"),
        ("Who got the {object}?", "{friend}"),
        ("Which animal did {hero} have?", "a {animal}"),
    ),
    "trade": (
        ("Where did they meet?", "at the {place}"),
        ("Who took the {object2}?", "{hero}"),
        ("Who took the {object}?", "{friend}"),
        ("Which {object} was it?", "the {colour} {object}"),
    ),
    "visit": (
        ("Where did {friend} live?", "near the {far}"),
        ("Who left the {place}?", "{hero}"),
        ("Who fed the {animal}?", "{friend}"),
        ("When did {hero} come to the {far}?", "on {day.next}"),
    ),
    "harvest": (
        ("Where was the garden?", "near the {place}"),
        ("Who planted {crop}?", "{hero}"),
        ("Who made {crop2.made}?", "{friend}"),
        ("Which animal did they have?", "a {animal}"),
    ),
}
# Answers of several words, whose options differ in one or two of them; the first of each kind are without names, which
# are the last thing that a small model learns to copy.
DETAILS = {
    "lost, found by the animal": (
        ("What was lost, and where?", "a {colour} {object} near the {place}"),
        ("Who helped whom?", "{friend} helped {hero}"),
    ),
    "lost, found by the friend": (
        ("What was taken where?", "the {colour} {object} to the {place}"),
        ("What did {friend} find?", "the {colour} {object} of {hero}"),
    ),
    "gift": (
        ("Which way did they walk?", "from the {place} to the {far}"),
        ("What did {friend} get?", "a {colour} {object} from {hero}"),
    ),
    "trade": (
        ("What was traded?", "the {colour} {object} and the {colour2} {object2}"),
        ("What did {hero} take?", "the {colour2} {object2} of {friend}"),
    ),
    "visit": (
        ("Which way did they go?", "from the {place} to the {far}"),
        ("Who had what?", "{hero} had a {animal} and a {colour} {object}"),
    ),
    "harvest": (
        ("What was planted?", "{crop} and {crop2}"),
        ("Who made what?", "{friend} made {crop2.made} and {hero} made {crop.made}"),
    ),
}
# What happens, in the order of the story.
EVENTS = {
    "lost, found by the animal": (
        "{hero} lost the {object}", "{friend} helped {hero}", "the {animal} found the {object}", "the {animal} ate",
    ),
    "lost, found by the friend": (
        "{hero} lost the {object}", "{friend} found the {object}", "{hero} thanked {friend}",
    ),
    "gift": ("{hero} had the {object}", "{hero} walked to the {far}", "{friend} took the {object}"),
    "trade": ("{hero} had the {object}", "they met at the {place}", "{hero} took the {object2}"),
    "visit": ("{hero} left the {place}", "they came to the {far}", "{friend} fed the {animal}", "{hero} went home"),
    "harvest": ("{hero} planted {crop}", "{hero} made {crop.made}", "they fed the {animal}"),
}  # fmt: skip
# What follows from a word of a class, asked of the word ...
FORWARD = (
    ("{hero} and {friend} lived near the {place} with a {animal}. What did it eat?", "{animal.food}"),
    ("{hero} and {friend} had {crop} near the {place}. What did they make?", "{crop.made}"),
    ("On a {weather} day {hero} and {friend} lost a {object} near the {place}. How was it?", "{weather.thing}"),
    ("{hero} left the {place} on {day}. {friend} left it a day later. When was that?", "{day.next}"),
)
# ... and the other way round.
REVERSE = (
    ("{hero} and {friend} gave {animal.food} to what lived near the {place}. What was it?", "{animal}"),
    ("{hero} and {friend} made {crop.made} of what they had near the {place}. What was it?", "{crop}"),
    (
        "{hero} and {friend} found a {object} near the {place}, and it was {weather.thing}. How was the day?",
        "{weather}",
    ),
    ("{hero} left the {place} on {day.next}. {friend} left it a day before. When was that?", "{day}"),
)


def is_held_out(hero: str, friend: str, place: str) -> bool:
    return hashlib.sha256(f"{hero} {friend} {place}".encode()).digest()[0] % HELD_OUT == 0


def people_and_place(text: str) -> tuple[str, str, str] | None:
    """The hero, friend and place of a story, or of a text that begins like one; None where it has not all three."""
    words = re.findall(r"\w+", text)
    names = list(dict.fromkeys(word for word in words if word in WORDS["name"]))
    places = [word for word in words if word in WORDS["place"]]
    return (names[0], names[1], places[0]) if len(names) > 1 and places else None


def draw_story(rng: random.Random, held_out: bool) -> Story:
    """A story whose people and place are held out, or are not."""
    while True:
        story = make_story(rng)
        if is_held_out(*(story.bound[role] for role in ("hero", "friend", "place"))) == held_out:
            return story


def make_probe(task: str, rng: random.Random, held_out: bool) -> Probe:
    """A question of one of the eight tasks, about a story with `held_out` people and place or another one."""
    while True:
        probe = _MAKERS[task](draw_story(rng, held_out), rng, held_out)
        if probe is not None:
            return probe


def _filled(template: str, bound: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\.?(\w*)\}", lambda slot: WORLD.spell(Slot(slot[1], slot[2]), bound), template)


def _copying(story: Story, rng: random.Random, held_out: bool) -> Probe | None:
    """A story up to a word that only its beginning determines."""
    tokens = tokens_of(story.text())
    kept = {word for name in KEPT for word in WORDS[name]}
    places = [i for i, token in enumerate(tokens) if token in kept and token in tokens[: max(0, i - FAR_BACK)]
              and token not in tokens[max(0, i - FAR_BACK) : i]]  # fmt: skip
    places = [i for i in places if next_words(tokens[:i]) == {tokens[i]}]
    if not places:
        return None
    place = rng.choice(places)
    return Probe(text_of(tokens[:place]), tokens[place])


def _who_where(story: Story, rng: random.Random, held_out: bool) -> Probe:
    question, answer = (_filled(text, story.bound) for text in rng.choice(WHO_WHERE[story.kind]))
    return Probe(question, answer, context=story.text())


def _details(story: Story, rng: random.Random, held_out: bool) -> Probe:
    question, answer = rng.choice(DETAILS[story.kind])
    right, options = _filled(answer, story.bound), []
    roles = list(dict.fromkeys(re.findall(r"\{(\w+)", answer)))
    while len(options) < 3:
        other = dict(story.bound)
        for role in rng.sample(roles, rng.choice((1, 2))):
            # As often as not a word of the story itself, in another's place.
            near = [w for r, w in story.bound.items() if ROLES[r] == ROLES[role] and w != story.bound[role]]
            other[role] = rng.choice(near if near and rng.random() < 0.5 else list(WORDS[ROLES[role]]))
        if (option := _filled(answer, other)) not in (right, *options):
            options.append(option)
    return Probe(f"{story.text()} {_filled(question, story.bound)}", right, _shuffled([right, *options], rng))


def _order(story: Story, rng: random.Random, held_out: bool) -> Probe:
    events = [_filled(event, story.bound) for event in EVENTS[story.kind]]
    shown = [event for event in events if event in rng.sample(events, 3)] if len(events) == 3 else None
    shown = shown or sorted(rng.sample(events, 3), key=events.index)
    which, answer = rng.choice((("first", shown[0]), ("last", shown[-1])))
    return Probe(f"{story.text()} What came {which}?", answer, _shuffled(shown, rng))


def _next_sentence(story: Story, index: int, wrong: int, rng: random.Random) -> tuple[str, list[str]] | None:
    """(sentence `index`, that many others of which each has one word against the story); None where there are fewer."""
    wording = story.wordings[index]
    before = {token.role for earlier in story.wordings[:index] for token in earlier if isinstance(token, Slot)}
    right, others = spelled(wording, story.bound), []
    begun = tokens_of(story.text(index))
    for place, token in enumerate(wording):
        if not isinstance(token, Slot) or token.role not in before:
            continue
        words, allowed = WORDS[ROLES[token.role]], next_words([*begun, *right[:place]])
        for word in dict.fromkeys([w[token.form] for w in words.values()] if token.form else words):
            if word not in allowed:
                others.append(text_of([*right[:place], word, *right[place + 1 :]]))
    if len(others) < wrong:
        return None
    return text_of(right), rng.sample(others, wrong)


def _cloze(story: Story, rng: random.Random, held_out: bool) -> Probe | None:
    """A sentence inside the story, in half the cases one without names."""
    places = range(2, len(story.wordings) - 1)
    if rng.random() < 0.5:
        named = {Slot("hero", ""), Slot("friend", "")}
        places = [place for place in places if not named & set(story.wordings[place])]
    found = _next_sentence(story, index := rng.choice(places), 3, rng) if places else None
    return found and Probe(story.text(index), found[0], _shuffled([found[0], *found[1]], rng))


def _ending(story: Story, rng: random.Random, held_out: bool) -> Probe | None:
    index = len(story.wordings) - 1
    found = _next_sentence(story, index, 1, rng)
    return found and Probe(story.text(index), found[0], _shuffled([found[0], *found[1]], rng))


def _recall(facts: Sequence[tuple[str, str]], story: Story, rng: random.Random, held_out: bool) -> Probe | None:
    """A fact of the world that no text before the question tells."""
    question, answer = rng.choice(facts)
    bound = {role: rng.choice(list(WORDS[name])) for role, name in ROLES.items()}
    bound |= {role: story.bound[role] for role in ("hero", "friend", "place")}
    role, form = re.search(r"\{(animal|crop|weather|day)\.?(\w*)\}", answer).groups()
    words = WORDS[ROLES[role]]
    if not held_out and list(words).index(bound[role]) % 2:
        return None  # told by stories alone
    options = [forms[form] if form else word for word, forms in words.items() if word != bound[role]]
    right = _filled(answer, bound)
    return Probe(_filled(question, bound), right, _shuffled([right, *rng.sample(options, 3)], rng))


def _shuffled(options: list[str], rng: random.Random) -> list[str]:
    return rng.sample(options, len(options))


_MAKERS = {
    "lambada": _copying,
    "mmlu": lambda *given: _recall(FORWARD, *given),
    "obqa": lambda *given: _recall(REVERSE, *given),
    "hellaswag": _cloze,
    "race": _details,
    "siqa": _order,
    "squad": _who_where,
    "story_cloze": _ending,
}
