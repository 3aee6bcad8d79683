"""What a run's workdir tells of the run: config.json, metrics.jsonl, timeline.jsonl, evaluation*.json and
tasks/STEP/tasks.json."""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from colajax.errors import UserError
from colajax.evals.families import FAMILIES
from colajax.evals.tasks.report import read_report, reports_of
from colajax.files import read_json
from colajax.train.kept import run_config
from colajax.train.metrics import EVENTS, read_lines

KINDS = {"vae": "stage 1", **FAMILIES}  # by the stage of a run
_LARGEST = 1e30  # what is beyond is not drawn, as what is not a number is not


class WorkdirRecord(NamedTuple):
    """name: of the run on the page, unlike those of the others; train, eval and timeline: their lines, each with its
    step and what of its values is a number (of the timeline, also its event); evaluations: evaluation*.json by their
    steps; tasks: {step: tasks.json}."""

    name: str
    workdir: epath.Path
    config: dict
    family: str
    train: list[dict]
    eval: list[dict]
    timeline: list[dict]
    evaluations: list[dict]
    tasks: dict[int, dict]

    def last(self, name: str) -> float | None:
        """A figure of the last line that has it: of evaluations, else of training."""
        lines = [*self.train, *self.eval]
        return next((line[name] for line in reversed(lines) if name in line), None)

    @property
    def step(self) -> int:
        return max((line["step"] for line in (*self.train, *self.eval)), default=0)


def read_workdirs(workdirs: Sequence[epath.PathLike]) -> list[WorkdirRecord]:
    """All of them. Raises UserError where there is no run, or a file of one is damaged."""
    paths = [epath.Path(workdir) for workdir in workdirs]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [os.fspath(path) for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"{next(name for name in names if names.count(name) > 1)}: named twice; name each run once")
    return [_read(name, path) for name, path in zip(names, paths, strict=True)]


def _read(name: str, workdir: epath.Path) -> WorkdirRecord:
    config = run_config(workdir)
    if config["stage"] not in KINDS:
        raise UserError(f"{workdir}/config.json: a run of stage {config['stage']!r}; expected {', '.join(KINDS)}")
    metrics = _numbers(workdir / "metrics.jsonl", "kind", ("train", "eval"))
    timeline = _numbers(workdir / "timeline.jsonl", "event", EVENTS)
    found = [_evaluation(path) for path in sorted(workdir.glob("evaluation*.json"))]
    return WorkdirRecord(
        name, workdir, config, KINDS[config["stage"]],
        train=[line for line in metrics if line["kind"] == "train"],
        eval=[line for line in metrics if line["kind"] == "eval"], timeline=timeline,
        evaluations=sorted(found, key=lambda evaluation: evaluation["step"]),
        tasks={step: read_report(path) for step, path in reports_of(workdir)},
    )  # fmt: skip


def _numbers(path: epath.Path, kind: str, kinds: Sequence[str]) -> list[dict]:
    """The lines of a log with a step, what `kind` says they are, and their values that are finite numbers."""
    found = []
    for line in read_lines(path):
        if not _is_step(line["step"]) or line.get(kind) not in kinds:
            raise UserError(f"{path}: damaged: a line of step {str(line['step'])[:20]}: expected a step from 0 and a "
                            f"{kind} of {', '.join(kinds)}; mend or remove the line")  # fmt: skip
        numbers = {name: value for name, value in line.items() if is_number(value)}
        found.append(numbers | {kind: line[kind]})
    return found


def is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < _LARGEST


def _is_step(value) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _evaluation(path: epath.Path) -> dict:
    found = read_json(path, "step", "figures", "samples")
    figures, samples = found["figures"], found["samples"]
    whole = (
        _is_step(found["step"]) and isinstance(figures, dict) and all(map(is_number, figures.values()))
        and isinstance(samples, list)
        and all(isinstance(s, list) and len(s) == 2 and all(isinstance(text, str) for text in s) for s in samples)
    )  # fmt: skip
    if not whole:
        raise UserError(f"{path}: damaged; expected a step, figures and samples (prompt, text); evaluate again")
    return found
