"""Files of outputs, in the released fields: a JSON object a line with id, prompt, generate, ground_truth, choices."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from colajax.errors import UserError
from colajax.evals.tasks.data import checked_text, json_lines
from colajax.evals.tasks.scoring import LETTERS, Decision, decide
from colajax.evals.tasks.table import Task
from colajax.files import write_whole

FIELDS = ("id", "prompt", "generate", "ground_truth", "choices")


class Output(NamedTuple):
    """What was generated after a prompt; ground_truth: a text, or several of which any is right."""

    id: str | int
    prompt: str
    generate: str
    ground_truth: str | list[str]
    choices: list[str]

    def line(self) -> str:
        return json.dumps(self._asdict(), ensure_ascii=False) + "\n"


def output_files(folder: epath.PathLike, tasks: list[Task], *, every: bool = True) -> dict[Task, epath.Path]:
    """TASK.jsonl of the tasks, in generations/ below the folder where there is one, else in it. UserError where one
    is missing; without `every`, where all are."""
    folder = epath.Path(folder)
    if (folder / "generations").is_dir():
        folder = folder / "generations"
    files = {task: folder / f"{task.name}.jsonl" for task in tasks}
    missing = [file.name for file in files.values() if not file.is_file()]
    if len(missing) == len(files) or (missing and every):
        raise UserError(f"{folder}: no {', '.join(missing)} there; expected a file of outputs of each task")
    return {task: file for task, file in files.items() if file.name not in missing}


def read_outputs(file: epath.Path, task: Task) -> Iterator[Output]:
    """Raises UserError naming the line that is not whole, lacks a field, or has what the task's rule cannot read."""
    empty = True
    for number, row in json_lines(file, file.read_bytes()):
        empty = False
        origin = f"{file}:{number}"
        if missing := [name for name in FIELDS if name not in row and not (name == "choices" and not task.choices)]:
            raise UserError(f"{origin}: no field {', '.join(map(repr, missing))}; expected {', '.join(FIELDS)}")
        truths = row["ground_truth"] if isinstance(row["ground_truth"], list) else [row["ground_truth"]]
        choices = row.get("choices") or []
        if not truths or not isinstance(choices, list) or len(choices) > len(LETTERS):
            raise UserError(f"{origin}: expected a text or texts in ground_truth and a list of texts in choices")
        for name, texts in (("ground_truth", truths), ("choices", choices), ("generate", [row["generate"]])):
            for text in texts:
                checked_text(text, name, origin)
        yield Output(row["id"], row["prompt"], row["generate"], row["ground_truth"], choices)
    if empty:
        raise UserError(f"{file}: no outputs in it; expected one JSON object a line")


def score_files(files: dict[Task, epath.Path], decisions: epath.Path | None = None) -> dict[str, list[bool]]:
    """Task -> whether each output is right. Into the folder `decisions`, where given, goes a TASK.jsonl of each: id,
    whether it is right, what was read and by which rule. Errors as in `read_outputs`."""
    right = {}
    for task, file in files.items():
        decided = [(output.id, _decided(task, output)) for output in read_outputs(file, task)]
        right[task.name] = [decision.right for _, decision in decided]
        if decisions is not None:
            lines = [json.dumps({"id": i, **d._asdict()}, ensure_ascii=False) + "\n" for i, d in decided]
            decisions.mkdir(parents=True, exist_ok=True)
            write_whole(decisions / f"{task.name}.jsonl", "".join(lines))
    return right


def _decided(task: Task, output: Output) -> Decision:
    truths = output.ground_truth if isinstance(output.ground_truth, list) else [output.ground_truth]
    return decide(task, output.generate, truths, output.choices)
