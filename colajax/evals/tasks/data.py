"""The records of a task: from .jsonl in our own form, or from the public data sets' files by their columns.

Ours is one object a line with id, question, choices (of the tasks that have options), answer or ground_truth (an
option's letter, text or index from 0; a text or a list of texts where there are no options), and for SQuAD context.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
from etils import epath

from colajax.errors import UserError
from colajax.evals.tasks.public import PUBLIC
from colajax.evals.tasks.scoring import LETTERS, normalise
from colajax.evals.tasks.table import Task

SUFFIXES = (".jsonl", ".parquet", ".csv")


class Record(NamedTuple):
    """truths: the texts that are right; of a task with options, the right option. context: "" where a task has none."""

    id: str
    question: str
    context: str
    choices: tuple[str, ...]
    truths: tuple[str, ...]


class TaskData(NamedTuple):
    """The records of a task in the order of its files, and the sha256 of the files' bytes."""

    task: Task
    records: list[Record]
    digest: str


def read_data(tasks: list[Task], folder: epath.PathLike, limit: int | None = None) -> list[TaskData]:
    """The data of several tasks, the first `limit` records of each; what is missing is said of all at once."""
    files = {task: _files_of(task, epath.Path(folder)) for task in tasks}
    if missing := [task.name for task, found in files.items() if not found]:
        there = [task.name for task in tasks if task.name not in missing]
        advice = f"without them: --tasks {','.join(there)}" if there else "expected names such as mmlu.jsonl"
        raise UserError(
            f"{folder}: no data of {', '.join(missing)}; expected of each TASK{', TASK'.join(SUFFIXES)} or a folder "
            f"TASK of such files; {advice}"
        )
    return [read_task(task, files[task], limit) for task in tasks]


def read_task(task: Task, files: list[epath.Path], limit: int | None = None) -> TaskData:
    """Raises UserError naming file and line on a row that lacks a column or whose gold answer is no option of its."""
    digest, records, seen = hashlib.sha256(), [], {}
    for file in files:
        content = file.read_bytes()
        digest.update(content)
        for number, row in _rows(file, content):
            origin = f"{file}:{number}"
            record = _record(task, row, origin, len(records))
            if record.id in seen:
                raise UserError(f"{origin}: id {record.id!r} is that of {seen[record.id]} too; expected one of its own")
            seen[record.id] = origin
            records.append(record)
    if not records:
        raise UserError(f"{files[0]}: no record in it; expected one or more of {task.title}")
    return TaskData(task, records[:limit], digest.hexdigest())


def _files_of(task: Task, folder: epath.Path) -> list[epath.Path]:
    """FOLDER/TASK with one of SUFFIXES, or those files in the folder FOLDER/TASK; of several splits the one to use."""
    for suffix in SUFFIXES:
        if (file := folder / f"{task.name}{suffix}").is_file():
            return [file]
    below = folder / task.name
    files = sorted((f for f in below.iterdir() if f.suffix in SUFFIXES), key=str) if below.is_dir() else []
    return [file for file in files if file.name.startswith(task.split)] or files


def _rows(file: epath.Path, content: bytes) -> Iterator[tuple[int, Mapping]]:
    """Yields (line or row number from 1, its columns)."""
    try:
        if file.suffix == ".parquet":
            yield from enumerate(pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist(), 1)
        elif file.suffix == ".csv":
            yield from enumerate(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True), 1)
        else:
            yield from json_lines(file, content)
    except (pyarrow.ArrowException, OSError, csv.Error, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: cannot be read ({reason}); is it complete and of the kind its name says?") from None


def json_lines(file: epath.Path, content: bytes) -> Iterator[tuple[int, dict]]:
    """Yields (line number from 1, object) of a file of JSON objects, one a line. Raises UserError on anything else."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file}:{number}: not JSON ({error}); expected one object a line; is it complete?"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number}: a {type(row).__name__}; expected one JSON object a line")
        yield number, row


def _record(task: Task, row: Mapping, origin: str, index: int) -> Record:
    """A row of either form as a Record; `index` stands for the id that some public data sets lack."""
    columns, convert = PUBLIC[task.name]
    own = ("id", "question", *(["context"] * task.context), *(["choices"] * bool(task.choices)))
    missing = [column for column in own if column not in row]
    if "answer" not in row and "ground_truth" not in row:
        missing.append("answer")
    if missing and all(column in row for column in columns):
        row = {"id": str(index), **convert(row, origin)}
    elif missing:
        raise UserError(
            f"{origin}: no column {', '.join(map(repr, missing))}; expected {', '.join(own)} and answer or "
            f"ground_truth, or the public data set's {', '.join(columns)}"
        )
    gold = row["answer"] if "answer" in row else row["ground_truth"]
    choices = _choices(task, row["choices"], origin) if task.choices else ()
    truths = (_option(gold, choices, origin),) if choices else _truths(gold, origin)
    id_ = row["id"] if isinstance(row["id"], str) else str(row["id"])
    texts = [checked_text(row[name], name, origin) for name in ("question", *(["context"] * task.context))]
    return Record(checked_text(id_, "id", origin), texts[0], texts[1] if task.context else "", choices, truths)


def checked_text(value: object, name: str, origin: str) -> str:
    """Raises UserError unless the value is a string of Unicode characters."""
    if not isinstance(value, str):
        raise UserError(f"{origin}: {name!r} is a {type(value).__name__}, expected a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{origin}: {name!r} holds half a surrogate pair, not Unicode text") from None
    return value


def _choices(task: Task, found: object, origin: str) -> tuple[str, ...]:
    if not isinstance(found, list) or len(found) != task.choices:
        shown = len(found) if isinstance(found, list) else type(found).__name__
        raise UserError(
            f"{origin}: 'choices' is {shown}, expected a list of the {task.choices} options of {task.title}"
        )
    return tuple(checked_text(choice, "choices", origin) for choice in found)


def _option(gold: object, choices: tuple[str, ...], origin: str) -> str:
    """The right option's text, given as that text, a letter, in brackets or not, or an index from 0."""
    last = LETTERS[len(choices) - 1]
    if isinstance(gold, int) and not isinstance(gold, bool):
        if not 0 <= gold < len(choices):
            raise UserError(f"{origin}: the answer is {gold}, outside its choices: expected 0 to {len(choices) - 1}")
        return choices[gold]
    text = checked_text(gold, "answer", origin).strip()
    if text in choices:
        return text
    letter = text.strip("()").upper()
    if len(letter) == 1 and letter in LETTERS:
        if letter > last:
            raise UserError(f"{origin}: the answer is {text!r}, a letter outside its choices: expected A to {last}")
        return choices[LETTERS.index(letter)]
    same = [choice for choice in choices if normalise(choice) == normalise(text) != ""]
    if not same:
        raise UserError(f"{origin}: the answer {text[:80]!r} is none of its choices: expected one, or A to {last}")
    return same[0]


def _truths(gold: object, origin: str) -> tuple[str, ...]:
    texts = gold if isinstance(gold, list) else [gold]
    truths = tuple(dict.fromkeys(checked_text(text, "answer", origin) for text in texts))
    if not any(normalise(truth) for truth in truths):
        raise UserError(f"{origin}: 'answer' has no word in it, so that nothing could be right; expected a text")
    return truths
