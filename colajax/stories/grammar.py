"""The embedded default corpus: short stories of a closed world, written by a seeded grammar.

A story is one of a few kinds (something lost, a gift, a trade, a visit, a harvest). A kind is a list of sentences, a
sentence a choice of wordings, a wording a template with slots:

    {role}        the word bound to the role; its first mention draws it, every later one repeats it
    {role.form}   a form that this word determines: a pronoun, what the animal eats, what the weather did

Two roles of one class (`ROLES`) never take the same word, and the two people of a story are a woman and a man, so that
a pronoun names one of them. Most draws fall in the first two sentences; nearly all that follows is determined by them,
often from far back. Of the tokens between the first sixteen and the last eight a reader of the whole context can get
.92 right, a bigram model .42.

A token is a word, a full stop or a comma. A story has 54 to 60 of them, and the world 146 distinct ones. There are
249 million distinct stories. `colajax.stories.checker` reads the same templates the other way.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SHE = {"he": "she", "He": "She", "his": "her", "him": "her"}
HE = {"he": "he", "He": "He", "his": "his", "him": "him"}
PLAIN: dict[str, str] = {}

# Class -> word -> the forms the word determines. No article but "a" is used: every noun and adjective has a consonant.
WORDS = {
    "name": dict.fromkeys(("Anna", "Clara", "Ella", "Grace", "Lucy", "Maria", "Nora", "Rosa"), SHE)
    | dict.fromkeys(("Adam", "Ben", "David", "Henry", "Jack", "Leo", "Oscar", "Tom"), HE),
    "place": dict.fromkeys(("river", "hill", "forest", "lake", "mill", "bridge", "tower", "castle"), PLAIN),
    "animal": {
        "dog": {"food": "meat"},
        "cat": {"food": "fish"},
        "goat": {"food": "grass"},
        "horse": {"food": "hay"},
        "duck": {"food": "bread"},
        "rabbit": {"food": "carrots"},
        "hen": {"food": "corn"},
        "mouse": {"food": "cheese"},
    },
    "colour": dict.fromkeys(("red", "blue", "green", "yellow", "white", "black"), PLAIN),
    "object": dict.fromkeys(("ball", "kite", "hat", "drum", "coin", "book", "cup", "lamp", "ring", "bell"), PLAIN),
    "weather": {
        "rainy": {"thing": "wet", "crop": "big"},
        "sunny": {"thing": "warm", "crop": "sweet"},
        "windy": {"thing": "dusty", "crop": "small"},
        "foggy": {"thing": "cold", "crop": "sour"},
    },
    "crop": {
        "apples": {"made": "cider"},
        "plums": {"made": "jam"},
        "beans": {"made": "soup"},
        "grapes": {"made": "juice"},
        "pumpkins": {"made": "pie"},
    },
    "day": {
        "Monday": {"next": "Tuesday"},
        "Tuesday": {"next": "Wednesday"},
        "Wednesday": {"next": "Thursday"},
        "Thursday": {"next": "Friday"},
        "Friday": {"next": "Saturday"},
    },
}

# Role -> class.
ROLES = {
    "hero": "name",
    "friend": "name",
    "place": "place",
    "far": "place",
    "animal": "animal",
    "colour": "colour",
    "colour2": "colour",
    "object": "object",
    "object2": "object",
    "weather": "weather",
    "crop": "crop",
    "crop2": "crop",
    "day": "day",
}

HOME = (
    "{hero} lived near the {place} with {hero.his} {animal}.",
    "{hero} and {hero.his} {animal} lived near the {place}.",
)
LOSS = (
    "One {weather} day {hero.he} lost a {colour} {object}.",
    "One {weather} day {hero.his} {colour} {object} was lost.",
)
SEARCH = ("{friend} helped {hero.him} look for it.", "{hero.He} looked for it with {friend}.")

# Kind of story -> its sentences -> the wordings of each.
KINDS = {
    "lost, found by the animal": (
        HOME,
        LOSS,
        SEARCH,
        ("At last the {animal} found the {object}, and it was {weather.thing}.",),
        (
            "{hero} was very happy, gave the {animal} {animal.food} and took the {colour} {object} home.",
            "{hero} was very happy, took the {colour} {object} home and gave the {animal} {animal.food}.",
        ),
    ),
    "lost, found by the friend": (
        HOME,
        LOSS,
        SEARCH,
        ("At last {friend} found the {object}, and it was {weather.thing}.",),
        (
            "{hero} was very happy, thanked {friend.him} and took the {colour} {object} home to the {place}.",
            "{hero} was very happy, took the {colour} {object} home to the {place} and thanked {friend.him}.",
        ),
    ),
    "gift": (
        HOME,
        ("{friend}, {hero.his} friend, lived near the {far}.",),
        (
            "{hero.He} made a {colour} {object} for {friend.him}.",
            "{hero.He} found a {colour} {object} for {friend.him}.",
        ),
        (
            "Then {hero.he} walked from the {place} to the {far} with the {animal}.",
            "Then {hero.he} and the {animal} walked from the {place} to the {far}.",
        ),
        ("{friend} was very happy, took the {colour} {object} and gave the {animal} {animal.food}.",),
    ),
    "trade": (
        (
            "{hero} had a {colour} {object}, and {friend} had a {colour2} {object2}.",
            "{hero} made a {colour} {object}, and {friend} made a {colour2} {object2}.",
        ),
        ("One {weather} day they met at the {place}.",),
        ("{hero} liked the {object2}, and {friend} liked the {object}.",),
        (
            "So {hero.he} gave {friend.him} the {colour} {object} and took the {colour2} {object2}.",
            "So {hero.he} took the {colour2} {object2} and gave {friend.him} the {colour} {object}.",
        ),
        (
            "Then {friend} was very happy with the {colour} {object}.",
            "Then {hero} was very happy with the {colour2} {object2}.",
        ),
    ),
    "visit": (
        ("On {day} {hero} left the {place} with {hero.his} {animal} and a {colour} {object}.",),
        (
            "{hero.He} wanted to see {friend}, who lived near the {far}.",
            "{hero.He} went to see {friend}, who lived near the {far}.",
        ),
        ("On {day.next} they came to the {far}, and {friend} gave the {animal} {animal.food}.",),
        (
            "{hero} gave {friend.him} the {colour} {object} and went home to the {place}.",
            "{hero} showed {friend.him} the {colour} {object} and took it home to the {place}.",
        ),
    ),
    "harvest": (
        ("{hero} and {friend} had a {animal} and a garden near the {place}.",),
        ("In spring {hero.he} planted {crop}, and {friend.he} planted {crop2}.",),
        ("The summer was {weather}, so the {crop} and the {crop2} were {weather.crop}.",),
        (
            "In autumn {hero} made {crop.made}, and {friend} made {crop2.made}.",
            "In autumn {friend} made {crop2.made}, and {hero} made {crop.made}.",
        ),
        ("Then they were very happy and gave the {animal} {animal.food}.",),
    ),
}


class Slot(NamedTuple):
    """Stands for the word of `role` in a wording, or for the `form` that this word determines ("": the word itself)."""

    role: str
    form: str


Wording = tuple[str | Slot, ...]


@dataclass(frozen=True)
class World:
    """What stories are about and how they are told: see WORDS, ROLES and KINDS for the three tables."""

    words: Mapping[str, Mapping[str, Mapping[str, str]]]
    kinds: Mapping[str, Sequence[Sequence[Wording]]]

    def choices(self, role: str, bound: Mapping[str, str]) -> list[str]:
        """The words that `role` may take beside those `bound` (role -> word) already."""
        words = self.words[ROLES[role]]
        taken = [word for other, word in bound.items() if ROLES[other] == ROLES[role]]
        # Names of one gender share their forms; a second person must not.
        taken_forms = [words[word] for word in taken if words[word]]
        return [word for word, forms in words.items() if word not in taken and forms not in taken_forms]

    def spell(self, slot: Slot, bound: Mapping[str, str]) -> str:
        """The token that `slot` stands for once its role is bound."""
        word = bound[slot.role]
        return self.words[ROLES[slot.role]][word][slot.form] if slot.form else word


def _wording(template: str) -> Wording:
    tokens = re.findall(r"\{[\w.]+\}|\w+|[.,]", template)
    return tuple(Slot(*token[1:-1].partition(".")[::2]) if token[0] == "{" else token for token in tokens)


WORLD = World(WORDS, {kind: [[_wording(t) for t in templates] for templates in KINDS[kind]] for kind in KINDS})


def tokens_of(text: str) -> list[str]:
    """The words and punctuation marks of a text, without the white space between them."""
    return re.findall(r"\w+|[^\w\s]", text)


def text_of(tokens: Sequence[str]) -> str:
    """The text of a story's tokens: a space before every word, none before a full stop or a comma."""
    return re.sub(r" ([.,])", r"\1", " ".join(tokens))


@dataclass(frozen=True)
class Story:
    """A story as it was made: its kind, role -> word, and the sentences' wordings."""

    kind: str
    bound: Mapping[str, str]
    wordings: Sequence[Wording]

    def text(self, sentences: int | None = None, world: World = WORLD) -> str:
        """All sentences, or the first so many."""
        return text_of(
            [token for wording in self.wordings[:sentences] for token in spelled(wording, self.bound, world)]
        )


def spelled(wording: Wording, bound: Mapping[str, str], world: World = WORLD) -> list[str]:
    """The tokens of a wording all of whose roles are bound."""
    return [world.spell(token, bound) if isinstance(token, Slot) else token for token in wording]


def make_story(rng: random.Random, world: World = WORLD) -> Story:
    """A story; the kind, each wording and each first mention of a role are uniform draws."""
    kind = rng.choice(list(world.kinds))
    bound, chosen = {}, []
    for wordings in world.kinds[kind]:
        chosen.append(rng.choice(wordings))
        for token in chosen[-1]:
            if isinstance(token, Slot) and token.role not in bound:
                bound[token.role] = rng.choice(world.choices(token.role, bound))
    return Story(kind, bound, chosen)


def generate_story(rng: random.Random, world: World = WORLD) -> str:
    """The text of a story: see `make_story`."""
    return make_story(rng, world).text(world=world)


def stories(seed: int, count: int) -> Iterator[str]:
    """`count` distinct stories, the same for one seed on every platform."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        story = generate_story(rng)
        if story not in seen:
            seen.add(story)
            yield story
