"""The report page: what html.parser finds in it, against the files that it was made from."""

import json
import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
import tiny_runs
from command_lines import run

from colajax.reporting import latents as latents_module
from colajax.reporting.latents import principal_components

HOSTILE = "<script>alert('x')</script>&\"<img src=http://x.example/a.png>"
VOID = ("meta",)


class Page(HTMLParser):
    """Its tags, each closed by its own, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], "", []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def workdirs(tmp_path):
    """A run of each stage with written logs; stage 2 has collapsed."""
    for number, stage in enumerate(("vae", "joint", "ar", "llada"), 1):
        folder = tmp_path / stage
        folder.mkdir()
        config = tiny_runs.tiny_config(stage, "records=R").to_dict() | {"facts": {"tokenizer": HOSTILE + stage}}
        config |= {"alerts": [["mean_variance", "below", 0.5, "warn"], ["loss", "above", 0.4375, "keep"]]}
        (folder / "config.json").write_text(json.dumps(config))
        cost = {"tokens": 7040 * number, "eflops": 1.25 * number, "exact_eflops": 1.75 * number}
        lines = [{"step": step, "kind": kind, "loss": 3.0625 / step, "accuracy": 0.5, **cost}
                 for step in (5, 10) for kind in ("train", "eval")]  # fmt: skip
        if stage == "joint":
            lines[-1] |= {"mean_variance": 0.1875, "gaussian_skill": 0.5625, "context_gain": 1.375,
                          "log_snr": float("inf"), "flow_time_0.2": 0.25, "flow_time_0.5": 0.125}  # fmt: skip
        write_lines(folder / "metrics.jsonl", lines)
        events = [("start", 0, {"began": 1e9}), ("train", 5, {"seconds": 60, "tokens_per_second": 77}),
                  ("spent", 5, {"start": 12, "compile": 8, "updates": 60, "save": 2}), ("skipped", 7, {"batch": 7}),
                  ("went back", 5, {}), ("train", 10, {"seconds": 30, "tokens_per_second": 88})]  # fmt: skip
        write_lines(folder / "timeline.jsonl", [{"event": e, "step": s, "time": "t", **more} for e, s, more in events])
    evaluation = {"step": 10, "figures": {"first <token>": 0.4375}, "samples": [["Anna", HOSTILE]]}
    (tmp_path / "joint" / "evaluation.json").write_text(json.dumps(evaluation))
    score = {"accuracy": 0.34375, "low": 0.25, "high": 0.5, "count": 48}
    (tmp_path / "ar" / "tasks" / "10").mkdir(parents=True)
    found = {"tasks": {HOSTILE: score}, "mean": score, "settings": {}}
    (tmp_path / "ar" / "tasks" / "10" / "tasks.json").write_text(json.dumps(found))
    return [tmp_path / stage for stage in ("vae", "joint", "ar", "llada")]


def report(workdirs, *more):
    out = workdirs[0].parent / "report.html"
    status, _, errors = run("report", [*map(str, workdirs), "--out", str(out), *more])
    assert (status, errors) == (0, "")
    return out.read_text()


def test_the_page_has_the_figures_of_the_files_and_fetches_nothing(workdirs):
    text = report(workdirs)
    page = Page(text)
    figures = ("7,040", "28,160", "1.25", "7", "0.3063", "0.1875", "0.5625", "1.375", "0.4375", "34.4 (25.0 to 50.0)")
    for figure in figures:
        assert figure in page.text, figure
    assert "joint: variance of the mean across tokens is 0.1875" in page.text
    assert "joint: skill of a Gaussian without context is 0.5625" in page.text
    assert "jointmean_variance below 0.5warn10101 of 2at step 10: mean_variance is 0.1875, below 0.5" in page.text
    assert "vaeloss above 0.4375keep551 of 2at step 5: loss is 0.6125, above 0.4375" in page.text
    # starts, batches skipped, went back; seconds of start, restore, compile, data, updates, evaluation, save, lost
    assert "vae1111208060020" in page.text
    assert HOSTILE in page.text
    assert not {"script", "img", "link", "iframe", "object", "image", "use"} & set(page.tags)
    assert not {"src", "href", "xlink:href", "onload", "onerror"} & {name for name, _ in page.attributes}
    assert "@import" not in text
    assert "url(" not in text
    assert "objective.interval" in page.text  # stage 2 alone has it


def test_a_line_of_a_chart_goes_through_what_was_logged(workdirs):
    """Places on the axis of tokens a second: of the same run on every page."""
    text = report(workdirs[:1])
    panel = next(part for part in text.split("<svg") if 'aria-label="accuracy"' in part)
    (line, *_) = re.findall(r'points="([^"]*)"', panel)
    places = [tuple(map(float, point.split(","))) for point in line.split()]
    assert places[0][1] == places[1][1]  # accuracy is level
    losses = next(part for part in text.split("<svg") if 'aria-label="loss"' in part)
    first, second = (float(p.split(",")[1]) for p in re.findall(r'points="([^"]*)"', losses)[-1].split())
    assert first < second  # SVG counts from the top


@pytest.mark.parametrize("values", [(0, 0), (1e-300, 1e29), (-1e29, 1e29), (1e29, 1e-9), (5, 5), (float("nan"), 2)])
def test_figures_of_any_size_have_a_place(values, workdirs):
    lines = [{"step": step, "kind": "eval", "loss": value, "kl_reference": value} for step, value in enumerate(values)]
    write_lines(workdirs[0] / "metrics.jsonl", lines)
    text = report(workdirs[:1])
    places = re.findall(r'(?:points|cx|cy|x|y|x1|y1)="([^"]*)"', text)
    assert all(abs(float(number)) < 1000 for place in places for number in re.split("[ ,]", place))


def test_latents_of_a_checkpoint(things, tmp_path):
    out = tmp_path / "report.html"
    arguments = [str(things / "vae"), str(things / "ar"), "--records", str(things / "records"), "--out", str(out)]
    assert run("report", arguments)[::2] == (0, "")
    Page(out.read_text())
    assert "vae: latents, step 2" in out.read_text()


def test_parameters_that_are_not_finite_are_one_line(things, tmp_path, monkeypatch):
    read = latents_module.read_params

    def damaged(*args, **kwargs):
        step, params = read(*args, **kwargs)
        return step, jax.tree.map(lambda x: x * np.nan, params)

    monkeypatch.setattr(latents_module, "read_params", damaged)
    out = tmp_path / "report.html"
    status, _, errors = run("report", [str(things / "vae"), "--records", str(things / "records"), "--out", str(out)])
    assert (status, errors) == (2, f"error: {things}/vae: step 2 holds NaN or infinity among its parameters; leave "
                                   "this run out\n")  # fmt: skip


def test_principal_components_are_those_of_the_singular_values():
    latents = np.random.default_rng(0).standard_normal((50, 4)) * [1, 5, 0.1, 2] + 3
    places, shares = principal_components(latents)
    u, s, _ = np.linalg.svd(latents - latents.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(places), np.abs((u * s)[:, :2]), atol=1e-9)
    np.testing.assert_allclose(shares, s**2 / (s**2).sum(), atol=1e-12)


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda f: (f / "config.json").unlink(), "no run there"),
        (lambda f: (f / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n'), "metrics.jsonl"),
        (lambda f: (f / "metrics.jsonl").write_text('x\n{"step": 2, "kind": "eval"}\n'), "metrics.jsonl:1"),
        (lambda f: (f / "evaluation.json").write_text('{"step": 1, "figures": [], "samples": []}'), "evaluation.json"),
    ],
)
def test_damaged_runs_are_one_line(break_it, named, workdirs, tmp_path):
    break_it(workdirs[1])
    status, _, errors = run("report", [*map(str, workdirs), "--out", str(tmp_path / "out.html")])
    assert (status, errors.count("\n")) == (2, 1)
    assert named in errors
    assert not (tmp_path / "out.html").exists()
