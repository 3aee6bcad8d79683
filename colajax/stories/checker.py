"""Reads a story with the grammar that writes it: exact acceptance, and what a continuation keeps.

Goes token by token with every reading that is still possible: a kind of story, what is left of the wording under way,
and the words bound to roles so far. A text is accepted when a reading is at the end of its kind when the text ends.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from colajax.stories.grammar import ROLES, WORLD, Slot, Wording, World, text_of, tokens_of

# The classes whose words a continuation must keep.
KEPT = ("name", "place", "animal", "colour", "object")


@dataclass(frozen=True)
class StoryCheck:
    """Whether a text is a story of the grammar.

    reason: one line that says what is wrong, empty when accepted. kind: the kind of story, empty when not accepted.
    facts: role -> word, such as {"hero": "Anna", "colour": "red"}; of a text that is not accepted, those that one
    reading finds before the fault.
    """

    accepted: bool
    reason: str = ""
    kind: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Reading:
    kind: str
    sentence: int  # index of the sentence under way
    rest: Wording  # what is left of its wording
    bound: Mapping[str, str]


def _settled(reading: _Reading, world: World) -> Iterator[_Reading]:
    """The reading itself, or, at the end of a sentence, one for every wording of the next: none after the last."""
    if reading.rest:
        yield reading
    elif reading.sentence + 1 < len(world.kinds[reading.kind]):
        for wording in world.kinds[reading.kind][reading.sentence + 1]:
            yield _Reading(reading.kind, reading.sentence + 1, wording, reading.bound)


def _expected(reading: _Reading, world: World) -> dict[str, Mapping[str, str]]:
    """Token -> what is bound after it, for every token that may come next in a reading with a rest."""
    slot = reading.rest[0]
    if not isinstance(slot, Slot):
        return {slot: reading.bound}
    if slot.role in reading.bound:
        return {world.spell(slot, reading.bound): reading.bound}
    return {word: reading.bound | {slot.role: word} for word in world.choices(slot.role, reading.bound)}


def _read(tokens: list[str], world: World) -> tuple[int, list[_Reading]]:
    """(number of tokens read, readings of them): as many of `tokens` as begin a story."""
    readings = [_Reading(kind, -1, (), {}) for kind in world.kinds]
    for count, token in enumerate(tokens):
        longer = [
            _Reading(at.kind, at.sentence, at.rest[1:], expected[token])
            for reading in readings
            for at in _settled(reading, world)
            if token in (expected := _expected(at, world))
        ]
        if not longer:
            return count, readings
        readings = longer
    return len(tokens), readings


def _fault(tokens: list[str], count: int, readings: list[_Reading], world: World) -> str:
    """What a story would have had after `count` tokens, and what is there."""
    settled = [at for reading in readings for at in _settled(reading, world)]
    wanted = sorted({token for reading in settled for token in _expected(reading, world)})
    wanted = " or ".join(wanted[:8] + ["..."] * (len(wanted) > 8)) or "the end"
    return f"token {count + 1}: expected {wanted}, found {tokens[count] if count < len(tokens) else 'the end'}"


def next_words(tokens: list[str], world: World = WORLD) -> set[str]:
    """Every token that may follow these in a story; none where no story begins with them."""
    count, readings = _read(tokens, world)
    if count < len(tokens):
        return set()
    settled = [at for reading in readings for at in _settled(reading, world)]
    return {token for reading in settled for token in _expected(reading, world)}


def check_story(text: str, world: World = WORLD) -> StoryCheck:
    """Accepts exactly the texts that `generate_story` can write, to the last space; names the first fault of others."""
    tokens = tokens_of(text)
    count, readings = _read(tokens, world)
    ended = [reading for reading in readings if not any(_settled(reading, world))]
    if count < len(tokens) or not ended:
        return StoryCheck(False, _fault(tokens, count, readings, world), facts=readings[0].bound)
    if text != text_of(tokens):
        return StoryCheck(False, "white space: expected one space before each word and no other", facts=ended[0].bound)
    return StoryCheck(True, kind=ended[0].kind, facts=ended[0].bound)


def keeps_prefix(prefix: str, story: str, world: World = WORLD) -> bool:
    """Whether `story` continues its beginning `prefix` without a name, place, animal, colour or object against it.

    True when some story of the grammar begins with the prefix and has every word of the classes in KEPT that `story`
    has. So where the prefix has bound a role, the rest can only repeat its word; where it has left one open, the rest
    may bring a word that the role could take (a second person is of the other gender, a second colour is another one).
    Nothing else is looked at, neither grammar nor pronouns nor who does what: a garbled continuation can keep its
    prefix.

    The prefix may end inside a word, which then counts as the rest's. A story that does not begin with the prefix does
    not keep it, and nothing keeps a prefix that begins no story of the grammar.
    """
    if not story.startswith(prefix):
        return False
    tokens, beginning = tokens_of(story), tokens_of(prefix)
    if beginning != tokens[: len(beginning)]:
        beginning.pop()
    count, readings = _read(beginning, world)
    if count < len(beginning):
        return False
    rest = set(tokens[len(beginning) :])
    return any(_admits(reading, rest, world) for reading in readings)


def _admits(reading: _Reading, rest: set[str], world: World) -> bool:
    ahead = [reading.rest, *itertools.chain(*world.kinds[reading.kind][reading.sentence + 1 :])]
    still_open = {token.role for wording in ahead for token in wording if isinstance(token, Slot)} - set(reading.bound)
    bound = dict(reading.bound)
    for name in KEPT:
        for word in rest & set(world.words[name]) - set(bound.values()):
            # The open roles of one class may take the same words, so any of them will do.
            role = next((role for role in still_open - set(bound) if ROLES[role] == name), None)
            if role is None or word not in world.choices(role, bound):
                return False
            bound[role] = word
    return True
