"""Accuracies with bootstrap intervals, as a table, JSON and CSV."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from colajax.errors import UserError
from colajax.evals.tasks.table import TASKS
from colajax.files import read_json, write_whole

REPORT = "tasks.json"  # the last file of an evaluation that is written
RESAMPLINGS = 10_000
INTERVAL = (2.5, 97.5)  # percentiles
SEED = 0


class Score(NamedTuple):
    """A share of right answers, its 95 % bootstrap interval, and the number of records (of the mean: of tasks)."""

    accuracy: float
    count: int
    low: float
    high: float


def scores(right: Mapping[str, Sequence[bool]]) -> dict[str, Score]:
    """Task -> score, and "mean", of the tasks alike whatever their sizes.

    Records are resampled within their task. The number of right ones among n drawn with replacement from n is binomial,
    so that is what is drawn; a task's draws depend on its name alone, not on the tasks beside it.
    """
    drawn = {name: _resampled(name, np.asarray(of_task, bool)) for name, of_task in right.items()}
    found = {
        name: Score(float(np.mean(right[name])), len(right[name]), *map(float, np.percentile(drawn[name], INTERVAL)))
        for name in right
    }
    mean = np.mean(list(drawn.values()), axis=0)
    accuracy = float(np.mean([score.accuracy for score in found.values()]))
    return found | {"mean": Score(accuracy, len(right), *map(float, np.percentile(mean, INTERVAL)))}


def _resampled(name: str, right: np.ndarray) -> np.ndarray:
    random = np.random.default_rng([SEED, list(TASKS).index(name)])
    return random.binomial(len(right), right.mean(), RESAMPLINGS) / len(right)


def table(found: Mapping[str, Score]) -> str:
    rows = [(TASKS[name].title if name in TASKS else name, score) for name, score in found.items()]
    lines = [
        f"{title:<12}{100 * s.accuracy:6.1f} %  ({100 * s.low:.1f} to {100 * s.high:.1f})  "
        + (f"{s.count:,} records" if title != "mean" else f"{s.count} tasks")
        for title, s in rows
    ]
    return "\n".join(lines)


def write_report(folder: epath.Path, found: Mapping[str, Score], facts: Mapping[str, object]) -> None:
    """FOLDER/tasks.json: {"tasks": {name: score}, "mean": score, ...facts}, and FOLDER/tasks.csv, a row a task."""
    of_tasks = {name: score._asdict() for name, score in found.items()}
    mean = of_tasks.pop("mean")
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(("task", *Score._fields))
    writer.writerows((name, *score) for name, score in found.items())
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "tasks.csv", rows.getvalue())
    # Last: who finds it finds the others.
    write_whole(folder / REPORT, json.dumps({"tasks": of_tasks, "mean": mean, **facts}, indent=1) + "\n")


def folder_of(workdir: epath.PathLike, step: int | None = None) -> epath.Path:
    """Where the evaluation of a run's checkpoint lies unless another place is named, or (None) of all of them."""
    folder = epath.Path(workdir) / "tasks"
    return folder if step is None else folder / str(step)


def reports_of(workdir: epath.PathLike) -> Iterator[tuple[int, epath.Path]]:
    """(step, file) of each evaluation of a run that is finished, by step."""
    folder = folder_of(workdir)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for step in sorted(int(name) for name in names if name.isdecimal()):
        if (file := folder_of(workdir, step) / REPORT).exists():
            yield step, file


def read_report(file: epath.Path) -> dict:
    """What write_report wrote. Raises UserError on anything else."""
    found = read_json(file, "tasks", "mean", "settings")
    try:
        if not isinstance(found["settings"], dict):
            raise ValueError(found["settings"])
        for score in (*found["tasks"].values(), found["mean"]):
            shares, count = [score[name] for name in ("accuracy", "low", "high")], score["count"]
            whole = all(type(share) in (int, float) and 0 <= share <= 1 for share in shares)
            if not whole or type(count) is not int or count < 1:
                raise ValueError(score)
    except (AttributeError, KeyError, TypeError, ValueError):
        expected = "settings, and accuracy, low, high, count of every task"
        raise UserError(f"{file}: damaged; expected {expected}; evaluate again") from None
    return found
