"""Curves: known power laws, and the figure and the tables of synthetic workdirs."""

import csv
import json
import shutil
import xml.etree.ElementTree
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from command_lines import assert_refused, run
from etils import epath
from tiny_runs import ROOT

from colajax.evals.tasks.table import TASKS
from colajax.scaling import results
from colajax.scaling.collect import collect
from colajax.scaling.fit import fit_power_law
from colajax.train.config import keep_config, load_config

COMPUTE = np.repeat(np.geomspace(1, 300, 8), 3)


# ---- power laws ------------------------------------------------------------------------------------------------------
def test_a_power_law_is_recovered_and_its_interval_holds_it():
    rng, held, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        error = 0.8 * COMPUTE[:12] ** -0.12 * np.exp(0.03 * rng.standard_normal(12))
        fit = fit_power_law(COMPUTE[:12], error)
        assert fit.c == 0
        held += fit.b_low <= 0.12 <= fit.b_high
    assert 0.92 < held / trials < 0.98  # 95 %
    exact = fit_power_law(COMPUTE, 0.8 * COMPUTE**-0.12)
    assert (exact.a, exact.b) == pytest.approx((0.8, 0.12), rel=1e-6)


def test_a_floor_is_found_where_there_is_one():
    rng, held, with_floor, trials = np.random.default_rng(1), 0, 0, 100
    for _ in range(trials):
        error = (0.5 * COMPUTE**-0.5 + 0.2) * np.exp(0.01 * rng.standard_normal(len(COMPUTE)))
        fit = fit_power_law(COMPUTE, error)
        with_floor += fit.c > 0
        held += fit.b_low <= 0.5 <= fit.b_high and fit.c <= fit.c_high
        assert fit.c == pytest.approx(0.2, abs=0.03)
        assert fit(300.0) == pytest.approx(0.5 * 300**-0.5 + 0.2, rel=0.02)
    assert with_floor == trials
    assert held > 0.88 * trials


@pytest.mark.parametrize(
    ("compute", "error"), [([1, 2], [0.5, 0.4]), ([3, 3, 3], [0.5, 0.4, 0.3]), ([1, 2, 3], [0.5, 0.5, 0.5]), ([], [])]
)
def test_too_few_points_have_no_law(compute, error):
    assert fit_power_law(compute, error) is None


# ---- workdirs --------------------------------------------------------------------------------------------------------
LAWS = {"cola": (0.9, 0.10), "ar": (0.8, 0.05), "llada": (0.95, 0.02)}  # error of a family at C EFLOPs: a C^-b
BUDGETS = (1.0, 4.0, 16.0, 64.0)
SETTINGS = {"tasks": {"mmlu": {"records": 500, "data": "d"}}, "sampler": {"steps": 16}}
CONFIGS = {"cola": "cola_joint", "ar": "ar", "llada": "llada"}


def leave_run(folder, family, seed, name=None, law=None, **facts):
    """The workdir of a run as training and evaluation leave it, by the family's law or another; EFLOPs are tokens /
    1e6."""
    workdir = folder / "runs" / (name or f"{family}-{seed}")
    config = load_config(f"{ROOT}/configs/{CONFIGS[family]}.py:quickstart", [f"seed={seed}", "batch_size=32"])
    keep_config(epath.Path(workdir), config, {"tokenizer": "t", "records": "r"} | facts)
    lines, rng = [], np.random.default_rng(seed)
    for step, budget in enumerate(BUDGETS, 1):
        exact = budget * (1.7 if family == "cola" else 1.0)
        cost = {"tokens": int(1e6 * budget), "eflops": budget, "exact_eflops": exact}
        lines += [{"step": step, "kind": "train", "loss": 1.0} | cost, {"step": step, "kind": "eval"} | cost]
        a, b = law or LAWS[family]
        accuracy = [1 - a * budget**-b * np.exp(0.003 * rng.standard_normal()) for _ in (*TASKS, "mean")]
        scores = [{"accuracy": x, "low": x - 0.02, "high": x + 0.02, "count": 500} for x in accuracy]
        report = {"tasks": dict(zip(TASKS, scores, strict=False)), "mean": scores[-1], "settings": SETTINGS}
        (workdir / "tasks" / str(step)).mkdir(parents=True)
        (workdir / "tasks" / str(step) / "tasks.json").write_text(json.dumps(report))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """The folder of a ladder whose runs follow LAWS; only read it."""
    folder = tmp_path_factory.mktemp("curves")
    for family in LAWS:
        for seed in (1, 2, 3):
            leave_run(folder, family, seed)
    (folder / "runs" / "cola-1" / "tasks" / "5").mkdir()  # an evaluation that has begun
    return folder


def test_the_figure_and_its_tables(curves, tmp_path):
    status, output, errors = run("scaling", ["plot", "--root", str(curves), "--out", str(tmp_path)])
    assert status == 0, errors
    assert "cola - ar at 64 EFLOPs: " in output
    found = json.loads((tmp_path / "scaling.json").read_text())
    laws = {(fit["label"], fit["task"], fit["axis"]): fit for fit in found["fits"]}
    assert len(laws) == 3 * 9 * 2
    inside = [fit["b_low"] <= LAWS[family][1] <= fit["b_high"] for (family, _, _), fit in laws.items()]
    assert np.mean(inside) > 0.85
    assert laws["ar", "mmlu", "eflops"]["a"] == pytest.approx(0.8, rel=0.02)
    # On the exact axis the same errors stand at 1.7 times the compute.
    assert laws["cola", "mmlu", "exact_eflops"]["a"] == pytest.approx(0.9 * 1.7**0.10, rel=0.02)
    gap = next(gap for gap in found["gaps"] if (gap["task"], gap["labels"]) == ("siqa", "cola - ar"))
    points = 100 * (0.8 * 64**-0.05 - 0.9 * 64**-0.10)
    assert gap["points"] == pytest.approx(points, abs=1)
    assert gap["intervals"] == pytest.approx(gap["points"] / (100 * np.hypot(0.02, 0.02) / 3**0.5), rel=0.1)
    rows = list(csv.DictReader((tmp_path / "scaling.csv").open()))
    assert len(rows) == 3 * 3 * 4 * 9
    for name in ("scaling", "scaling_exact"):
        picture = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert min(picture.shape[:2]) > 1000
        colours = np.unique(np.round(255 * picture[..., :3]).astype(int) @ [2**16, 2**8, 1])
        assert {0xD55E00, 0x0072B2, 0x009E73} <= set(colours.tolist())
        drawing = xml.etree.ElementTree.parse(tmp_path / f"{name}.svg")
        assert drawing.getroot().tag.endswith("svg")


def test_bands_are_the_seeds_range(curves):
    points = collect(sorted((curves / "runs").iterdir())).points
    curve = results.curve_of(points, "ar", "race")
    for at, budget in enumerate(BUDGETS):
        values = [p.accuracy for p in points if (p.label, p.task, p.eflops) == ("ar", "race", budget)]
        assert len(values) == 3
        expected = min(values), np.mean(values), max(values)
        assert (curve.low[at], curve.mean[at], curve.high[at]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: leave_run(run.parent.parent, "ar", 9, tokenizer="other"), "the runs disagree in tokenizer: other"),
        (
            lambda run: [_edit(run.parent / f"llada-{i}" / "config.json", batch_size=16) for i in (1, 2, 3)],
            "the runs disagree in tokens: ",
        ),
        (
            lambda run: _edit(run / "config.json", remat="dots", log_every=7, compute_dtype="bfloat16"),
            "compute_dtype is bfloat16, but float32",
        ),
        (lambda run: (run / "metrics.jsonl").unlink(), "no line of step 1 with exact_eflops"),
        (lambda run: _edit(run / "tasks" / "2" / "tasks.json", mean={"accuracy": 2}), "tasks.json: damaged"),
        (lambda run: (run / "tasks" / "2" / "tasks.json").write_text("{"), "tasks.json: damaged"),
        (
            lambda run: _edit(run / "tasks" / "2" / "tasks.json", settings=SETTINGS | {"tasks": {"mmlu": {"data": 2}}}),
            "tasks.mmlu.data is 2, but d in",
        ),
        (
            lambda run: _edit(run / "tasks" / "2" / "tasks.json", settings=SETTINGS | {"sampler": {"steps": 32}}),
            "sampler.steps is 32, but 16 in",
        ),
        (lambda run: _edit(run / "tasks" / "2" / "tasks.json", settings=7), "tasks.json: damaged"),
        (lambda run: shutil.rmtree(run.parent), "runs: not found"),
        (lambda run: [shutil.rmtree(path / "tasks") for path in run.parent.iterdir()], "no run with tasks"),
    ],
)
def test_runs_that_make_no_curve(curves, tmp_path, damage, said):
    shutil.copytree(curves, tmp_path / "curves")
    damage(tmp_path / "curves" / "runs" / "llada-2")
    status, _, errors = run("scaling", ["plot", "--root", str(tmp_path / "curves"), "--out", str(tmp_path / "out")])
    assert status == 2
    assert_refused(errors)
    assert said in errors
    assert not (tmp_path / "out").exists()


def _edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


VARIANTS = """
from colajax.scaling.ladder import Ladder, Member
LADDERS = {"mine": Ladder((1e-6, 2e-6), (1, 2, 3), (), {"s": {
    name: Member("configs/ar.py:quickstart", overrides) for name, overrides in (
        ("best", ()), ("worse", ("seed=1",)), ("alike", ("optimizer.peak=0.1",)), ("better", ()))
}}, best="best")}
"""


def test_variants_are_compared_with_what_the_paper_finds_best(tmp_path):
    (tmp_path / "mine.py").write_text(VARIANTS)
    for name, law in (("best", 0.8), ("worse", 0.9), ("alike", 0.805), ("better", 0.7)):
        for seed in (1, 2, 3):
            leave_run(tmp_path, "ar", seed, f"{name}-s-{seed}", (law, 0.05))
    leave_run(tmp_path, "ar", 9, "none-of-the-ladder", (0.5, 0.1))
    ladder = f"{tmp_path / 'mine.py'}:mine"
    status, output, errors = run("scaling", ["plot", "--ladder", ladder, "--root", str(tmp_path)])
    assert status == 0, errors
    verdicts = dict(line.split(" at 64 EFLOPs: ") for line in output.splitlines() if " EFLOPs: " in line)
    assert {labels: said.rpartition(": ")[2] for labels, said in verdicts.items()} == {
        "best - worse": "as in the paper", "best - alike": "not told apart", "best - better": "against the paper",
    }  # fmt: skip
    assert verdicts["best - worse"].startswith("+8.1 points of the mean, +")  # 10 points at 1 EFLOP, a law of .05
    rows = list(csv.DictReader((tmp_path / "scaling.csv").open()))
    assert {row["label"] for row in rows} == {"best", "worse", "alike", "better"}
