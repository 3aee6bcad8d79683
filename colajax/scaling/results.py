"""The curves of a ladder as tables: points over seeds, fits, and how far families lie apart."""

import csv
import io
import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from etils import epath

from colajax.files import write_whole
from colajax.scaling.collect import TASKS, Collected, Point
from colajax.scaling.fit import Fit, fit_power_law

AXES = ("eflops", "exact_eflops")


class Curve(NamedTuple):
    """One family on one task, by budget; low and high are the lowest and the highest of the seeds."""

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


def families_of(points: Iterable[Point]) -> list[str]:
    found = {point.family for point in points}
    return [family for family in ("cola", "ar", "llada") if family in found]


def curve_of(points: Iterable[Point], family: str, task: str) -> Curve:
    by_tokens: dict[int, list[Point]] = {}
    for point in points:
        if (point.family, point.task) == (family, task):
            by_tokens.setdefault(point.tokens, []).append(point)
    rows = []
    for _, group in sorted(by_tokens.items()):
        values = [point.accuracy for point in group]
        rows.append((group[0].eflops, group[0].exact_eflops, np.mean(values), min(values), max(values), len(values)))
    return Curve(*np.array(rows, float).reshape(-1, 6).T)


def fit_of(points: Iterable[Point], family: str, task: str, axis: str) -> Fit | None:
    """Of every seed's error at every budget; an error of 0 counts as half a record."""
    chosen = [point for point in points if (point.family, point.task) == (family, task)]
    errors = [max(1 - point.accuracy, 0.5 / max(point.count, 1)) for point in chosen]
    return fit_power_law([getattr(point, axis) for point in chosen], errors)


def gaps(points: list[Point]) -> list[dict]:
    """At the last budget that all families have: on every task each family against the first one, in percentage points
    and in the half-widths of the evaluation's 95 % intervals (of both together, over seeds)."""
    first, *others = families_of(points)
    shared = set.intersection(*({p.tokens for p in points if p.family == family} for family in (first, *others)))
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
                "task": task, "families": f"{first} - {other}", "eflops": at[0].eflops, "points": 100 * (ours - theirs),
                "intervals": (ours - theirs) / both if both else 0.0,
            })  # fmt: skip
    return found


def _with_width(points: list[Point], family: str, task: str) -> tuple[float, float]:
    """Mean over seeds, and half the width of its interval: of the records', or of the seeds' where that is more."""
    chosen = [point for point in points if (point.family, point.task) == (family, task)]
    values = np.array([point.accuracy for point in chosen])
    of_records = np.sqrt(sum(((point.high - point.low) / 2) ** 2 for point in chosen)) / len(chosen)
    of_seeds = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(max(of_records, of_seeds))


def write_tables(folder: epath.Path, collected: Collected) -> None:
    """FOLDER/scaling.csv, a row a task and checkpoint, and FOLDER/scaling.json with fits, gaps and settings."""
    points = collected.points
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(Point._fields)
    writer.writerows(points)
    fits = [
        {"family": family, "task": task, "axis": axis, **fit._asdict()}
        for axis in AXES for task in tasks_of(points) for family in families_of(points)
        if (fit := fit_of(points, family, task, axis)) is not None
    ]  # fmt: skip
    content = {
        "error": "1 - accuracy = a C^-b + c, C in EFLOPs; intervals of 95 %", "fits": fits, "gaps": gaps(points),
        "stage_one_exact_eflops": collected.stage_one, "settings": collected.settings,
        "points": [point._asdict() for point in points],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "scaling.csv", rows.getvalue())
    write_whole(folder / "scaling.json", json.dumps(content, indent=1) + "\n")


def text(collected: Collected) -> str:
    """What the curves say, for a terminal: accuracies by budget, exponents, gaps at the last budget."""
    points, lines = collected.points, []
    for task in tasks_of(points):
        lines.append(task)
        for family in families_of(points):
            curve = curve_of(points, family, task)
            shown = "  ".join(f"{100 * mean:5.1f}" for mean in curve.mean)
            fit = fit_of(points, family, task, "eflops")
            law = f"  b {fit.b:.3f} ({fit.b_low:.3f} to {fit.b_high:.3f})" if fit else ""
            lines.append(f"  {family:<6}{shown}{law}")
    for gap in gaps(points):
        if gap["task"] == "mean":
            lines.append(
                f"{gap['families']} at {gap['eflops']:.4g} EFLOPs: {gap['points']:+.1f} points of the mean, "
                f"{gap['intervals']:+.1f} intervals"
            )
    return "\n".join(lines)
