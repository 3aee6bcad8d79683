"""The paper's figure: accuracy against training compute, a panel a task and one for the mean; of families, or of the
variants of one."""

import io
import math

from etils import epath

from colajax.errors import UserError
from colajax.evals.tasks.table import TASKS
from colajax.files import write_whole
from colajax.scaling.collect import Collected
from colajax.scaling.results import curve_of, fit_of, labels_of, tasks_of

# Fixed, and told apart without colour too (Okabe and Ito's palette).
STYLE = {"cola": ("Cola", "#D55E00", "o"), "ar": ("AR", "#0072B2", "s"), "llada": ("LLaDA", "#009E73", "^")}
OTHERS = (("#D55E00", "o"), ("#0072B2", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#000000", "v"), ("#E69F00", "P"))
AXIS = {
    "eflops": "EFLOPs, 6 N tokens: as many tokens are as much compute",
    "exact_eflops": "EFLOPs, exact: the matrix products of the training program",
}
FILES = {"eflops": "scaling", "exact_eflops": "scaling_exact"}
FORMATS = ("png", "svg")
PANELS = 3  # beside each other


def draw(folder: epath.Path, collected: Collected) -> list[epath.Path]:
    """Writes FOLDER/scaling.png, .svg by the compute axis and scaling_exact.png, .svg by exact EFLOPs. Raises UserError
    where matplotlib is not installed."""
    try:
        from matplotlib import figure, ticker
    except ImportError:
        raise UserError("plot: needs matplotlib; pip install 'colajax[plot]'") from None
    written = []
    for axis, name in FILES.items():
        drawn = _figure(figure.Figure, ticker, collected, axis)
        for kind in FORMATS:
            content = io.BytesIO()
            drawn.savefig(content, format=kind, dpi=150)
            written.append(folder / f"{name}.{kind}")
            write_whole(written[-1], content.getvalue())
    return written


def _figure(make, ticker, collected: Collected, axis: str):
    points, tasks = collected.points, tasks_of(collected.points)
    rows = math.ceil(len(tasks) / PANELS)
    figure = make(figsize=(4 * PANELS, 2.9 * rows + 1.2), layout="constrained")
    panels = figure.subplots(rows, PANELS, squeeze=False).flatten()
    for panel, task in zip(panels, tasks, strict=False):
        for label in labels_of(points):
            _draw_curve(panel, points, label, task, axis)
        title = TASKS[task].title if task in TASKS else "mean of the tasks"
        panel.set_title(title, fontweight="bold" if task == "mean" else None)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())  # within one decade they would lie on each other
        top = max(panel.get_ylim()[1], 1.0)
        panel.set_ylim(-0.03 * top, top)  # a marker at 0 is seen whole
        panel.set_ylabel("accuracy, %")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(tasks) :]:
        panel.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(OTHERS), frameon=False)
    figure.supxlabel(f"{AXIS[axis]}\n{_note(collected)}", fontsize=9)
    return figure


def _style(points, label: str) -> tuple[str, str, str]:
    """(name, colour, marker): a family's own, or the next."""
    if label in STYLE:
        return STYLE[label]
    others = [other for other in labels_of(points) if other not in STYLE]
    return label, *OTHERS[others.index(label) % len(OTHERS)]


def _draw_curve(panel, points, label: str, task: str, axis: str) -> None:
    curve = curve_of(points, label, task)
    if not len(curve.mean):
        return
    name, colour, marker = _style(points, label)
    x = getattr(curve, axis)
    panel.plot(x, 100 * curve.mean, color=colour, marker=marker, label=name, markersize=5)
    panel.fill_between(x, 100 * curve.low, 100 * curve.high, color=colour, alpha=0.18, linewidth=0)
    fit = fit_of(points, label, task, axis)
    if fit is not None and len(x) > 1:
        between = [x[0] * (x[-1] / x[0]) ** (i / 50) for i in range(51)]
        panel.plot(between, 100 * (1 - fit(between)), color=colour, linestyle=":", linewidth=1)


def _note(collected: Collected) -> str:
    seeds = len({point.seed for point in collected.points})
    said = f"bands: lowest to highest of {seeds} seed{'s' * (seeds > 1)}; dotted: error = a C^-b + c"
    if collected.stage_one:
        begun = ", ".join(f"{exact:.3g} ({label})" for label, exact in collected.stage_one.items())
        said += f"\nstage 1 is not in it; exact EFLOPs: {begun}"
    return said
