"""The curves of a ladder as tables: points over seeds, fits, and how far families lie apart."""

import csv
import io
import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from etils import epath

from colajax.evals.tasks.table import TASKS
from colajax.files import write_whole
from colajax.scaling.collect import Collected, Point
from colajax.scaling.fit import Fit, fit_power_law

AXES = ("eflops", "exact_eflops")


class Curve(NamedTuple):
    """One family or variant on one task, by budget; low and high are the lowest and the highest of the seeds."""

    eflops: np.ndarray
    exact_eflops: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray


def tasks_of(points: Iterable[Point]) -> list[str]:
    """In the order of the paper, the mean last."""
    found = {point.task for point in points}
    return [task for task in (*TASKS, "mean") if task in found]


def labels_of(points: Iterable[Point]) -> list[str]:
    """The families in the order of the paper, then what else there is, as it comes."""
    found = list(dict.fromkeys(point.label for point in points))
    families = [label for label in ("cola", "ar", "llada") if label in found]
    return families + [label for label in found if label not in families]


def curve_of(points: Iterable[Point], label: str, task: str) -> Curve:
    by_tokens: dict[int, list[Point]] = {}
    for point in points:
        if (point.label, point.task) == (label, task):
            by_tokens.setdefault(point.tokens, []).append(point)
    rows = []
    for _, group in sorted(by_tokens.items()):
        values = [point.accuracy for point in group]
        rows.append((group[0].eflops, group[0].exact_eflops, np.mean(values), min(values), max(values), len(values)))
    return Curve(*np.array(rows, float).reshape(-1, 6).T)


def fit_of(points: Iterable[Point], label: str, task: str, axis: str) -> Fit | None:
    """Of every seed's error at every budget; an error of 0 counts as half a record."""
    chosen = [point for point in points if (point.label, point.task) == (label, task)]
    errors = [max(1 - point.accuracy, 0.5 / max(point.count, 1)) for point in chosen]
    return fit_power_law([getattr(point, axis) for point in chosen], errors)


def gaps(points: list[Point], best: str = "") -> list[dict]:
    """At the last budget that all have: on every task the first family, or `best`, against each of the others, in
    percentage points and in the half-widths of the evaluation's 95 % intervals (of both together, over seeds)."""
    labels = labels_of(points)
    first = best or labels[0]
    others = [label for label in labels if label != first]
    shared = set.intersection(*({p.tokens for p in points if p.label == label} for label in (first, *others)))
    if not others or not shared:
        return []
    at = [point for point in points if point.tokens == max(shared)]
    found = []
    for task in tasks_of(at):
        ours, width = _with_width(at, first, task)
        for other in others:
            theirs, their_width = _with_width(at, other, task)
            both = float(np.hypot(width, their_width))
            found.append({
                "task": task, "labels": f"{first} - {other}", "eflops": at[0].eflops, "points": 100 * (ours - theirs),
                "intervals": (ours - theirs) / both if both else 0.0,
            })  # fmt: skip
    return found


def _with_width(points: list[Point], label: str, task: str) -> tuple[float, float]:
    """Mean over seeds, and half the width of its interval: of the records', or of the seeds' where that is more."""
    chosen = [point for point in points if (point.label, point.task) == (label, task)]
    values = np.array([point.accuracy for point in chosen])
    of_records = np.sqrt(sum(((point.high - point.low) / 2) ** 2 for point in chosen)) / len(chosen)
    of_seeds = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(max(of_records, of_seeds))


def write_tables(folder: epath.Path, collected: Collected, best: str = "") -> None:
    """FOLDER/scaling.csv, a row a task and checkpoint, and FOLDER/scaling.json with fits, gaps and settings."""
    points = collected.points
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(Point._fields)
    writer.writerows(points)
    fits = [
        {"label": label, "task": task, "axis": axis, **fit._asdict()}
        for axis in AXES for task in tasks_of(points) for label in labels_of(points)
        if (fit := fit_of(points, label, task, axis)) is not None
    ]  # fmt: skip
    content = {
        "error": "1 - accuracy = a C^-b + c, C in EFLOPs; intervals of 95 %", "fits": fits, "gaps": gaps(points, best),
        "stage_one_exact_eflops": collected.stage_one, "settings": collected.settings,
        "points": [point._asdict() for point in points],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "scaling.csv", rows.getvalue())
    write_whole(folder / "scaling.json", json.dumps(content, indent=1) + "\n")


def text(collected: Collected, best: str = "") -> str:
    """What the curves say, for a terminal: accuracies by budget, exponents, gaps at the last budget; of what the paper
    finds best, whether that is so here."""
    points, lines = collected.points, []
    width = max(map(len, labels_of(points)))
    for task in tasks_of(points):
        lines.append(task)
        for label in labels_of(points):
            curve = curve_of(points, label, task)
            shown = "  ".join(f"{100 * mean:5.1f}" for mean in curve.mean)
            fit = fit_of(points, label, task, "eflops")
            law = f"  b {fit.b:.3f} ({fit.b_low:.3f} to {fit.b_high:.3f})" if fit else ""
            lines.append(f"  {label:<{width}} {shown}{law}")
    for gap in gaps(points, best):
        if gap["task"] == "mean":
            lines.append(
                f"{gap['labels']} at {gap['eflops']:.4g} EFLOPs: {gap['points']:+.1f} points of the mean, "
                f"{gap['intervals']:+.1f} intervals" + (f": {_verdict(gap['intervals'])}" if best else "")
            )
    return "\n".join(lines)


def _verdict(intervals: float) -> str:
    """On a difference that the paper finds positive."""
    return "as in the paper" if intervals > 1 else "against the paper" if intervals < -1 else "not told apart"
