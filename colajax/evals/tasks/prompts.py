"""Prompts: a template a task, with its demonstrations in it.

A set of prompts is a JSON file {"source": "...", "templates": {TASK: TEMPLATE, ...}}. In a template {question},
{context} (SQuAD) and {choices[0]}, {choices[1]}, ... stand for the record's; braces of the text itself are doubled.
Ours are in prompts.json beside this file: LAMBADA without demonstrations, SQuAD with one, the others with two.
"""

import hashlib
import pathlib
import string
from typing import NamedTuple

from etils import epath

from colajax.errors import UserError
from colajax.evals.tasks.data import Record
from colajax.evals.tasks.table import Task
from colajax.files import read_json

OURS = pathlib.Path(__file__).parent / "prompts.json"


class Template(NamedTuple):
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, record: Record) -> str:
        return self.text.format(question=record.question, context=record.context, choices=record.choices)


def read_prompts(tasks: list[Task], path: epath.PathLike | None = None) -> dict[str, Template]:
    """The templates of some tasks, ours by default. Raises UserError on a file of another form."""
    path = OURS if path is None else epath.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a set of prompts")
    found = read_json(path, "templates")["templates"]
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise UserError(f"{path}: templates: expected an object of texts, one a task (tools/README.md)")
    missing = [task.name for task in tasks if task.name not in found]
    if missing:
        raise UserError(f"{path}: no template of {', '.join(missing)}; add it, or leave the task out of --tasks")
    return {task.name: Template(_checked(found[task.name], task, f"{path}: {task.name}")) for task in tasks}


def _checked(text: str, task: Task, origin: str) -> str:
    try:
        parts = list(string.Formatter().parse(text))
        text.encode()
    except ValueError as error:  # a surrogate's is one too
        raise UserError(f"{origin}: not a template ({error}); braces of the text itself are doubled") from None
    named = [name for _, name, *_ in parts if name is not None]
    plain = all(not form and conversion is None for _, name, form, conversion in parts if name is not None)
    if unknown := [name for name in named if name not in task.fields]:
        raise UserError(f"{origin}: {{{unknown[0]}}} is not known; expected {', '.join(task.fields)} in braces")
    if not plain or "question" not in named:
        raise UserError(f"{origin}: expected {{question}} in it, and names alone between braces")
    return text
