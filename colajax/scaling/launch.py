"""A ladder on other machines: what each of its runs takes by `planning`, and the commands to launch."""

import shlex
from collections.abc import Callable

from colajax.scaling.ladder import Run
from colajax.scaling.run import evaluation_command, training_command

GB = 1e9


def plan_rows(runs: list[Run], plan_of: Callable[[Run], tuple[dict, dict]], price: float | None) -> list[dict]:
    """What each run takes. plan_of(run) -> (plan, target) of `planning.plan`, asked once for runs that differ in their
    seed alone; price: of a chip-hour."""
    known: dict[tuple, tuple[dict, dict]] = {}
    rows = []
    for run in runs:
        key = (run.member.config, *(o for o in run.overrides if o.partition("=")[0] not in ("seed", "init_from")))
        if key not in known:
            known[key] = plan_of(run)
        plan, target = known[key]
        row = {
            "run": run.name, "topology": plan["topology"], "chips": plan["chips"], "steps": target["steps"],
            "eflops": target["eflops"], "hours": None, "chip_hours": None, "cost": None,
            "storage_bytes": target["storage_bytes"],
        }  # fmt: skip
        if "days" in target:
            row |= {"hours": 24 * target["days"], "chip_hours": target["chip_hours"]}
            row["cost"] = price and price * target["chip_hours"]
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """Rows of `plan_rows`, and their sum."""
    columns = {"steps": 1, "eflops": 1, "hours": 1, "chip_hours": 1, "storage_bytes": GB, "cost": 1}
    names = {"eflops": "EFLOPs", "chip_hours": "chip-hours", "storage_bytes": "storage, GB"}
    head = f"{'run':<26}" + "".join(f"{names.get(column, column):>13}" for column in columns)
    total = {"run": "all", **{column: sum(row[column] or 0 for row in rows) for column in columns}}
    if any(row["hours"] is None for row in rows):
        total |= {"hours": None, "chip_hours": None}
    total["cost"] = total["cost"] or None
    lines = [
        f"{row['run']:<26}" + "".join(f"{_shown(row[column], unit):>13}" for column, unit in columns.items())
        for row in (*rows, total)
    ]
    title = f"{rows[0]['topology']}, {rows[0]['chips']} chips; training alone, one run after the other"
    return "\n".join([title, head, *lines])


def _shown(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:,.0f}" if value / unit >= 100 else f"{value / unit:.3g}"


def commands(runs: list[Run], tasks: str) -> str:
    """What to launch, in the order in which runs begin with each other; tasks: the folder of the tasks' files."""
    lines = ["# In the repository, in every process of the machines that do it: launch/README.md"]
    for run in runs:
        lines.append(f"# {run.name}" + (f": when {run.stage_one.name} has ended" if run.stage_one else ""))
        lines.append(f"python {shlex.join(training_command(run))}")
        lines += [f"python {shlex.join(evaluation_command(run, step, tasks))}" for step in run.budgets]
    return "\n".join(lines)
