"""One self-contained page about runs: no script, no network, whatever is from outside escaped."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from colajax.reporting.chart import Series, bars, chart, shown
from colajax.reporting.latents import Latents
from colajax.reporting.workdir import WorkdirRecord
from colajax.train.alerts import alerts_of, raised_by
from colajax.train.config import flatten
from colajax.train.goodput import KINDS, totals

# Okabe and Ito's palette, told apart without colour vision; families as in the scaling figure, others what is left.
FAMILY_COLOURS = {"cola": "#D55E00", "ar": "#0072B2", "llada": "#009E73", "stage 1": "#CC79A7"}
PALETTE = (*FAMILY_COLOURS.values(), "#E69F00", "#56B4E9", "#000000", "#8A7F00")
# Figures of latents and prior: name, title, what is healthy (None: no end), and who says so.
HEALTH = (
    ("mean_variance", "variance of the mean across tokens", (0.9, None)),
    ("gaussian_skill", "skill of a Gaussian without context", (None, 0.1)),
    ("context_gain", "context gain", (0.0, None)),
    ("log_snr", "logSNR of the latents", (3.5, 5.5)),
    ("kl_reference", "KL to stage 1, nats a latent", (None, 0.3)),
    ("skill", "skill of the prior", (0.0, None)),
)
LOSSES = ("loss", "reconstruction", "flow", "mask", "next_token", "masked_tokens", "accuracy", "mask_accuracy")
BY_TIME = {"flow_time_": "flow loss by time", "masked_time_": "masked-token loss by time"}
SPENT = dict(zip(
    KINDS, ("#999999", "#56B4E9", "#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00"), strict=True
))  # fmt: skip
COUNTED = {"start": "starts", "skipped": "batches skipped", "went back": "went back"}  # events of the timeline
STYLE = """body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1320px;margin:24px auto;padding:0 20px}
h1{font-size:24px}h2{font-size:18px;margin:34px 0 8px;border-bottom:1px solid #ddd}p{margin:6px 0;max-width:900px}
.note{color:#666;font-size:13px}.charts{display:flex;flex-wrap:wrap;gap:8px}svg{width:420px;height:250px}
svg.wide{width:100%;max-width:860px;height:auto}table{border-collapse:collapse;font-size:13px;margin:8px 0}
td,th{padding:3px 10px;border-bottom:1px solid #eee;text-align:right;vertical-align:top}
td:first-child,th:first-child{text-align:left;white-space:nowrap}td{max-width:420px;overflow-wrap:break-word}
.keys td{overflow-wrap:anywhere}
.bad{color:#b00020;font-weight:600}
.key{display:inline-block;width:12px;height:12px;margin:0 5px 0 14px;border-radius:2px}
.sample{max-width:900px;margin:8px 0}
.new{background:#fff3c4}.title{font:600 13px system-ui,sans-serif;fill:#222}
.tick{font:11px system-ui,sans-serif;fill:#666}
.grid{stroke:#000;stroke-opacity:.1}.axis{stroke:#888}"""


def page(runs: Sequence[WorkdirRecord], latents: Mapping[str, Latents], no_latents: str) -> str:
    """HTML. latents: by name of run; no_latents: why runs are not among them."""
    colours = _colours(runs)
    sections = (
        ("Summary", _summary(runs)), ("Losses", _losses(runs, colours)), ("Loss by time", _by_time(runs, colours)),
        ("Latents and prior", _health(runs, colours)), ("Alerts", _alerts(runs)),
        ("Where the latents lie", _latents(latents, no_latents)),
        ("Throughput and wall time", _speed(runs, colours)), ("Evaluations", _evaluations(runs)),
        ("Tasks", _tasks(runs, colours)), ("Samples", _samples(runs)), ("Configuration", _differences(runs)),
    )  # fmt: skip
    legend = "".join(_key(colours[run.name], f"{run.name} ({run.family})") for run in runs)
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content)
    title = escape("Runs: " + ", ".join(run.name for run in runs))
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1><p>{legend}</p>"
        f'<p class="note">Strong lines with dots are held-out figures, faint lines training; '
        f"a green band is the healthy range.</p>{body}</body></html>\n"
    )


def _colours(runs: Sequence[WorkdirRecord]) -> dict[str, str]:
    found: dict[str, str] = {}
    for run in runs:
        wanted = (FAMILY_COLOURS[run.family], *reversed(PALETTE))
        free = [colour for colour in wanted if colour not in found.values()]
        found[run.name] = free[0] if free else PALETTE[len(found) % len(PALETTE)]
    return found


def _key(colour: str, label: str) -> str:
    return f'<span class="key" style="background:{colour}"></span>{escape(label)}'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of texts from anywhere."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(value: float | None) -> str:
    return "–" if value is None else shown(value)


def _summary(runs: Sequence[WorkdirRecord]) -> str:
    names = ("tokens", "eflops", "exact_eflops", "loss", "accuracy", "perplexity", *(name for name, *_ in HEALTH))
    names = [name for name in names if any(run.last(name) is not None for run in runs)]
    titles = {"eflops": "EFLOPs (6 N tokens)", "exact_eflops": "EFLOPs, exact"}
    rows = [
        [run.name, run.family, f"{run.step:,} of {run.config['total_steps']:,}", *(_figure(run.last(n)) for n in names)]
        for run in runs
    ]
    warned = [_unhealthy(run, *figure) for run in runs for figure in HEALTH[:2]]
    header = ["run", "family", "step", *(titles.get(n, n.replace("_", " ")) for n in names)]
    return _table(header, rows) + "".join(warned)


def _unhealthy(run: WorkdirRecord, name: str, title: str, healthy: tuple) -> str:
    value, (low, high) = run.last(name), healthy
    if value is None or ((low is None or value >= low) and (high is None or value <= high)):
        return ""
    bound = f"above {low}" if high is None else f"below {high}"
    return f'<p class="bad">{escape(run.name)}: {title} is {shown(value)} at its last line (healthy: {bound})</p>'


def _panel(runs, colours, name: str, title: str, healthy=(None, None), log: bool = False) -> str:
    series = [
        Series(f"{run.name}, {kind}", colours[run.name], [(line["step"], line[name]) for line in lines if name in line],
               faint=kind == "training", dots=kind == "held out")
        for run in runs for kind, lines in (("training", run.train), ("held out", run.eval))
    ]  # fmt: skip
    return chart(title, [line for line in series if line.points], x="step", healthy=healthy, log=log)


def _charts(charts: Sequence[str], note: str = "") -> str:
    found = "".join(charts)
    return found and f'<div class="charts">{found}</div>' + (f'<p class="note">{note}</p>' if note else "")


def _losses(runs, colours) -> str:
    titles = {name: name.replace("_", " ") for name in LOSSES}
    panels = [_panel(runs, colours, n, title, log="accuracy" not in n) for n, title in titles.items()]
    return _charts(panels, "Losses of different families measure different things: compare a loss within a family.")


def _health(runs, colours) -> str:
    note = (
        "Healthy ranges: variance of the mean above 0.9, Gaussian skill below 0.1, gain and skill above 0. Those of "
        "logSNR (3.5 to 5.5) and KL (below 0.3) are what working runs of the quickstart had, not limits of the method."
    )
    return _charts([_panel(runs, colours, *figure) for figure in HEALTH], note)


def _alerts(runs) -> str:
    """Of config.alerts, those that an evaluation raised."""
    rows = []
    for run in runs:
        alerts, found = alerts_of(run.config["alerts"]), {}
        for number, line in enumerate(run.eval, 1):
            for alert, said in raised_by(alerts, run.eval[:number]).items():
                found.setdefault(alert, []).append((line["step"], said))
        for alert, times in found.items():
            (first, _), (last, said) = times[0], times[-1]
            share = f"{len(times)} of {len(run.eval)}"
            rows.append([run.name, f"{alert.figure} {alert.kind} {alert.bound:g}", alert.action, str(first), str(last),
                         share, f"at step {last}: {said}"])  # fmt: skip
    header = ["run", "alert", "action", "first at step", "last at step", "evaluations", "what it says"]
    return _table(header, rows) if rows else ""


def _by_time(runs, colours) -> str:
    found = [_tenths(run, prefix, f"{run.name}: {title}", colours[run.name])
             for run in runs for prefix, title in BY_TIME.items()]  # fmt: skip
    return _charts(found, "A line an evaluation, later ones stronger; 0 is clean, 1 is noise (or all masked).")


def _tenths(run: WorkdirRecord, prefix: str, title: str, colour: str) -> str:
    lines = [line for line in run.eval if any(name.startswith(prefix) for name in line)]
    lines = [lines[i * (len(lines) - 1) // 5] for i in range(6)] if len(lines) > 6 else lines
    series = []
    for number, line in enumerate(lines, 1):
        tenths = [(i / 10 + 0.05, line[f"{prefix}{i / 10}"]) for i in range(10) if f"{prefix}{i / 10}" in line]
        opacity = 0.2 + 0.8 * number / len(lines)
        series.append(Series(f"step {line['step']}", colour, tenths, dots=True, opacity=opacity))
    return chart(title, series, x="time, middle of a tenth", y=f"{len(lines)} evaluations")


def _latents(latents: Mapping[str, Latents], no_latents: str) -> str:
    charts = [_scatter(name, found) for name, found in latents.items()]
    spectra = [
        chart(f"{name}: share of variance by component",
              [Series(name, "#0072B2", list(enumerate(found.shares, 1)), dots=True)], x="principal component")
        for name, found in latents.items()
    ]  # fmt: skip
    reason = f'<p class="note">{escape(no_latents)}</p>' if no_latents else ""
    pairs = [part for pair in zip(charts, spectra, strict=True) for part in pair]
    note = "Posterior means of held-out tokens at the latest checkpoint; the most frequent tokens in colour."
    return _charts(pairs, note) + "".join(map(_token_key, latents.items())) + reason


def _frequent(found: Latents) -> dict[str, str]:
    common = [token for token, _ in Counter(found.tokens).most_common(len(PALETTE))]
    return dict(zip(common, PALETTE, strict=False))


def _scatter(name: str, found: Latents) -> str:
    colours = _frequent(found)
    groups = {token: [] for token in (None, *colours)}
    for token, place in zip(found.tokens, found.places.tolist(), strict=True):
        groups[token if token in colours else None].append(tuple(place))
    series = [Series(token or "other", colours.get(token, "#bbbbbb"), points, dots=True, joined=False, opacity=0.7)
              for token, points in groups.items() if points]  # fmt: skip
    share = f"{found.shares[:2].sum():.0%} of the variance"
    return chart(f"{name}: latents, step {found.step}", series, x="first principal component", y=share, equal=True)


def _token_key(item: tuple[str, Latents]) -> str:
    keys = "".join(_key(colour, token or "(space)") for token, colour in _frequent(item[1]).items())
    return f'<p class="note">{escape(item[0])}: {keys}</p>'


def _speed(runs, colours) -> str:
    rates = [Series(run.name, colours[run.name], points) for run in runs for points in _rates(run)]
    spent = {run.name: dict.fromkeys(KINDS, 0.0) | totals(run.timeline) for run in runs}
    rows = [(name, [(kind, found[kind], SPENT[kind]) for kind in KINDS]) for name, found in spent.items()]
    table = _table(["run", *COUNTED.values(), *(f"{kind}, s" for kind in KINDS)], [
        [run.name, *(str(sum(line["event"] == event for line in run.timeline)) for event in COUNTED),
         *(_figure(round(spent[run.name][kind], 2)) for kind in KINDS)] for run in runs
    ])  # fmt: skip
    legend = f"<p>{''.join(_key(colour, kind) for kind, colour in SPENT.items())}</p>"
    charts = _charts([chart("tokens a second", [line for line in rates if line.points], x="step")])
    return charts + legend + bars(rows, "s") + table if any(run.timeline for run in runs) else ""


def _rates(run: WorkdirRecord) -> list[list[tuple[float, float]]]:
    """A list a start: what a run did again after a restart is drawn again."""
    found: list[list[tuple[float, float]]] = []
    for line in run.timeline:
        if line["event"] == "start" or not found:
            found.append([])
        if line["event"] == "train" and "tokens_per_second" in line:
            found[-1].append((line["step"], line["tokens_per_second"]))
    return found


def _evaluations(runs) -> str:
    columns = [(f"{run.name}, step {found['step']}", found["figures"]) for run in runs for found in run.evaluations]
    names = list(dict.fromkeys(name for _, figures in columns for name in figures))
    rows = [[name, *(_figure(figures.get(name)) for _, figures in columns)] for name in names]
    return _table(["", *(title for title, _ in columns)], rows) if columns else ""


def _tasks(runs, colours) -> str:
    columns = [(run, step, found) for run in runs for step, found in sorted(run.tasks.items())]
    if not columns:
        return ""
    names = list(dict.fromkeys(name for *_, found in columns for name in found["tasks"]))
    scores = [({**found["tasks"], "mean": found["mean"]}) for *_, found in columns]
    counts = {name: " or ".join(sorted({f"{score[name]['count']:,}" for score in scores if name in score}))
              for name in (*names, "mean")}  # fmt: skip
    rows = [[f"{name}, {counts[name]} records", *(_score(score.get(name)) for score in scores)] for name in names]
    rows.append([f"mean of {counts['mean']} tasks", *(_score(score["mean"]) for score in scores)])
    means = [
        Series(run.name, colours[run.name],
               [(step, 100 * found["mean"]["accuracy"]) for step, found in sorted(run.tasks.items())], dots=True)
        for run in runs if run.tasks
    ]  # fmt: skip
    panel = _charts([chart("mean accuracy of the tasks, %", means, x="step")])
    return panel + _table(["%, 95 % interval", *(f"{run.name}, step {step}" for run, step, _ in columns)], rows)


def _score(score: dict | None) -> str:
    if score is None:
        return "–"
    accuracy, low, high = (100 * score[key] for key in ("accuracy", "low", "high"))
    return f"{accuracy:.1f} ({low:.1f} to {high:.1f})"


def _samples(runs) -> str:
    found = [(run, evaluation) for run in runs for evaluation in run.evaluations if evaluation["samples"]]
    parts = []
    for run, evaluation in found:
        parts.append(f"<p><b>{escape(run.name)}, step {evaluation['step']}</b></p>")
        parts += [f'<p class="sample">{escape(prompt)}<span class="new">{escape(text)}</span></p>'
                  for prompt, text in evaluation["samples"]]  # fmt: skip
    missing = [run.name for run in runs if not run.evaluations and run.config["stage"] != "vae"]
    if missing:
        told = "no samples: tools/evaluate.py --records writes them, with --step those of another checkpoint"
        parts.append(f'<p class="note">{escape(", ".join(missing))}: {told}.</p>')
    return "".join(parts)


def _differences(runs) -> str:
    """Keys that differ; of one run there is nothing to compare."""
    if len(runs) < 2:
        return ""
    flat = [flatten(run.config) for run in runs]
    keys = sorted({key for config in flat for key in config})
    rows = [
        [key, *(json.dumps(config[key]) if key in config else "–" for config in flat)]
        for key in keys if any(config.get(key, "–") != flat[0].get(key, "–") for config in flat)
    ]  # fmt: skip
    same = f'<p class="note">{len(keys) - len(rows)} keys are the same in all.</p>'
    return f'<div class="keys">{_table(["key", *(run.name for run in runs)], rows)}</div>{same}'
