"""The rules by which the paper's figures count an answer, as its released scoring has them.

An output is cut at the first newline that has a word character before it. LAMBADA compares first words; SQuAD,
HellaSwag and Story Cloze whole texts, normalised; the others find the option that an output names, by letter or text.
"""

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

from colajax.evals.tasks.table import Task

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHORT = 40  # characters in which a bracketed letter counts
CLOSE = 0.9  # difflib's ratio from which on a text is taken for an option


class Decision(NamedTuple):
    """Whether an output is right, what it and the gold answer were read as, and by which rule."""

    right: bool
    answer: str
    gold: str
    rule: str


def cut(text: str) -> str:
    """The text up to the first newline that has a word character before it."""
    word = re.search(r"\w", text)
    end = text.find("\n", word.start()) if word else -1
    return text if end < 0 else text[:end]


def normalise(text: str) -> str:
    """Lower case, nothing that is neither word character nor space, one space where there were several."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def decide(task: Task, generated: str, truths: Sequence[str], choices: Sequence[str]) -> Decision:
    """Whether the generated text answers a record of `task`; right where any of several truths is met.

    A text without word characters is never right, not even where the truth has none either.
    """
    decide_one = {"word": _by_word, "text": _by_text, "option": _by_option}[task.rule]
    decisions = [decide_one(cut(generated), truth, choices) for truth in truths]
    return next((decision for decision in decisions if decision.right), decisions[0])


def _by_word(output: str, truth: str, choices: Sequence[str]) -> Decision:
    answer, gold = ((normalise(text).split() or [""])[0] for text in (output, truth))
    return Decision(bool(answer) and answer == gold, answer, gold, "first word")


def _by_text(output: str, truth: str, choices: Sequence[str]) -> Decision:
    answer, gold = normalise(output), normalise(truth)
    return Decision(bool(answer) and answer == gold, answer, gold, "text")


def _by_option(output: str, truth: str, choices: Sequence[str]) -> Decision:
    (answer, rule), (gold, _) = named_option(output, choices), named_option(cut(truth), choices)
    if answer and answer == gold:
        return Decision(True, answer, gold, rule)
    by_text = _by_text(output, truth, choices)
    return by_text if by_text.right else Decision(False, answer, gold, rule)


# What precedes an answer; the answer part is what follows the last one.
_ANSWER = re.compile(r"\b(?:final\s+)?answer(?:\s*(?:is\b|=|:))+", re.IGNORECASE)
# A letter alone counts in either case; inside a sentence a small one is as likely the article "a".
_ALONE = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]?[.:]?")
_NAMED = re.compile(
    r"\b(?i:answer|option|choice)\b\s*(?i:is\b)?\s*[:=]?\s*(?:[(\[]\s*([A-Za-z])\s*[)\]]|([A-Z])\b(?!['’]))"
)
_BRACKETED = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
_LEAD_IN = re.compile(  # of a normalised text
    r"(?:(?:so|thus|therefore|hence|i think|i believe) )*(?:that )?"
    r"(?:(?:the|my) )?(?:(?:correct|right|best|most likely|final) )*(?:answer|option|choice) (?:is )?(?:that )?"
)


def named_option(text: str, choices: Sequence[str]) -> tuple[str, str]:
    """(the letter of the option that a text names, the rule by which), two empty strings where it names none.

    Looks at the answer part first: what follows "answer is", "final answer:" and the like on the last line that has it.
    """
    lines = [line for line in text.splitlines() if _ANSWER.search(line)]
    parts = [_ANSWER.split(lines[-1])[-1], text] if lines else [text]
    for part in parts:
        if (found := _in_part(part.strip(), choices))[0]:
            return found
    return "", ""


def _in_part(part: str, choices: Sequence[str]) -> tuple[str, str]:
    letters = LETTERS[: len(choices)]
    if (alone := _ALONE.fullmatch(part)) and alone[1].upper() in letters:
        return alone[1].upper(), "letter alone"
    named = [(bracketed or bare).upper() for bracketed, bare in _NAMED.findall(part)]
    if named := [letter for letter in named if letter in letters]:
        return named[-1], "answer, option or choice X"
    if len(part) <= SHORT:
        bracketed = [letter.upper() for letter in _BRACKETED.findall(part) if letter.upper() in letters]
        if bracketed:
            return bracketed[-1], "bracketed letter"
    return _by_options_text(normalise(part), list(zip(letters, map(normalise, choices), strict=True)))


def _by_options_text(said: str, options: list[tuple[str, str]]) -> tuple[str, str]:
    """said, and the text in each (letter, text) of `options`, are normalised."""
    options = [(letter, text) for letter, text in options if text]
    if not said:
        return "", ""
    for candidate in (said, _LEAD_IN.sub("", said, count=1) if _LEAD_IN.match(said) else said):
        for letter, text in options:
            if candidate == text:
                return letter, "option's text"
    contained = [letter for letter, text in options if text in said]
    if len(contained) == 1:
        return contained[0], "only option contained"
    ratios = {letter: _ratio(said, text) for letter, text in options}
    closest = max(ratios, key=ratios.get, default="")
    return (closest, "closest option") if ratios.get(closest, 0.0) >= CLOSE else ("", "")


def _ratio(said: str, text: str) -> float:
    """difflib's ratio where it is at least CLOSE, else 0; the bounds spare most comparisons the slow one."""
    matcher = difflib.SequenceMatcher(None, said, text)
    if matcher.real_quick_ratio() < CLOSE or matcher.quick_ratio() < CLOSE:
        return 0.0
    ratio = matcher.ratio()
    return ratio if ratio >= CLOSE else 0.0
