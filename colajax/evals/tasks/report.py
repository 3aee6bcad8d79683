"""Accuracies with bootstrap intervals, as a table, JSON and CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from colajax.evals.tasks.table import TASKS
from colajax.files import write_whole

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
    so that is what is drawn; a task's draws hang on its name alone, not on the tasks beside it.
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
    write_whole(folder / "tasks.json", json.dumps({"tasks": of_tasks, "mean": mean, **facts}, indent=1) + "\n")
