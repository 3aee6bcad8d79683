"""The eight tasks, in the order of the tables."""

import difflib
from dataclasses import dataclass
from typing import Literal

from colajax.errors import UserError


@dataclass(frozen=True)
class Task:
    """What is asked and how an answer counts.

    choices: how many options, 0: none. rule: of `scoring`: the first word, the whole text, or an option by its letter
    or text. split: which of a public data set's splits is evaluated.
    """

    name: str
    title: str
    choices: int
    rule: Literal["word", "text", "option"]
    split: str
    context: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """What a template may name in braces."""
        return ("question", *(["context"] * self.context), *(f"choices[{i}]" for i in range(self.choices)))


TASKS = {
    task.name: task
    for task in (
        Task("lambada", "LAMBADA", 0, "word", "test"),
        Task("mmlu", "MMLU", 4, "option", "test"),
        Task("obqa", "OBQA", 4, "option", "test"),
        Task("hellaswag", "HellaSwag", 4, "text", "validation"),
        Task("race", "RACE", 4, "option", "test"),
        Task("siqa", "SIQA", 3, "option", "validation"),
        Task("squad", "SQuAD", 0, "text", "validation", context=True),
        Task("story_cloze", "Story Cloze", 2, "text", "test"),
    )
}


def tasks_named(names: str) -> list[Task]:
    """The tasks of "all" or of names with commas between them, in the table's order. UserError on another name."""
    asked = list(TASKS) if names == "all" else names.split(",")
    for name in asked:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"--tasks {names}: no task {name!r}{hint}; expected all, or some of {', '.join(TASKS)}")
    return [task for name, task in TASKS.items() if name in asked]
