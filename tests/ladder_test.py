"""Ladders: their runs, the ones that ship, stand-ins for trainings, killed on the way, plans."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from command_lines import assert_refused, run
from tiny_runs import ROOT

from colajax.errors import UserError
from colajax.planning.plan import make_plan, target
from colajax.planning.topology import find_topology
from colajax.scaling.ladder import find_ladder, runs_of
from colajax.scaling.run import evaluated, run_ladder, status
from colajax.stages import stage_of
from colajax.train.budgets import budget_steps

LADDERS = ROOT / "configs" / "ladder.py"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """(folder, ladder, its runs)"""
    folder = tmp_path_factory.mktemp("quick")
    ladder = find_ladder("quick", LADDERS)
    return folder, ladder, runs_of(ladder, str(folder), ROOT)


def test_the_runs_of_a_ladder_are_matched(quick):
    _, ladder, runs = quick
    assert len(ladder.budgets) >= 4
    assert len(ladder.seeds) >= 2
    names = [run.name for run in runs]
    trained = [run for run in runs if run.budgets]
    assert {run.label for run in trained} == {"cola", "ar", "llada"}
    assert len(trained) == 3 * len(ladder.seeds)
    schedules = set()
    for one in trained:
        config = one.config(ROOT)
        stage = stage_of(config)(config, 0, 1)
        o = config.optimizer
        assert config.total_steps == one.total_steps == one.budgets[-1] == budget_steps(config, stage)[-1]
        data = config.batch_size, config.sequence_length, config.data_seed
        schedules.add((*data, one.budgets, o.warmup_steps, o.decay_steps))
        if stage.init_from:
            assert names.index(one.stage_one.name) < names.index(one.name)
            assert stage.init_from == one.stage_one.workdir
    assert len(schedules) == 1
    assert len({run.config(ROOT).seed for run in trained}) == len(ladder.seeds)


@pytest.mark.parametrize(
    ("name", "seeds", "trained", "begun"),
    [("joint", 3, 3, 1), ("mask-loss", 3, 2, 2), ("loc", 3, 4, 1), ("block", 3, 3, 3), ("paper-block", 1, 4, 4)],
)
def test_the_paper_s_orderings_share_what_they_have_in_common(name, seeds, trained, begun):
    ladder = find_ladder(name, LADDERS)
    runs = runs_of(ladder, "R", ROOT)
    assert len(ladder.seeds) == seeds
    assert len([run for run in runs if run.budgets]) == seeds * trained
    assert len([run for run in runs if not run.budgets]) == seeds * begun
    for one in runs:
        config = one.config(ROOT)
        if one.stage_one:
            stage_of(config)(config, 0, 1).check_start(one.stage_one.config(ROOT).to_dict())
        else:
            assert not config.get("init_from")
    if not name.startswith("paper"):
        base = [run for run in runs if run.label == ladder.best]
        assert base == [run for run in runs_of(find_ladder("joint", LADDERS), "R", ROOT) if run.label == "joint"]


def test_the_paper_s_ladder_ends_where_its_curves_do():
    ladder = find_ladder("paper", LADDERS)
    assert [ladder.budgets[at] for at in (0, 1, -1)] == pytest.approx([77.86, 116.78, 2000.92], abs=0.01)
    runs = runs_of(ladder, "gs://b/curves", ROOT)
    assert {run.label for run in runs if run.budgets} == {"cola", "ar", "llada"}
    for one in runs:
        if one.budgets:
            assert len(one.budgets) == 8
            assert one.budgets[:2] == (10_000, 15_000)
            assert one.total_steps == 257_000
            assert one.config(ROOT).optimizer.decay_steps == 1_000_000


LADDER = """
from colajax.scaling.ladder import Ladder, Member
LADDERS = {{"mine": Ladder((1e-6, 2e-6), (1,), ("optimizer.warmup_steps=2", {shared}), {{"s": {{
    "ar": Member("configs/ar.py:quickstart"), "llada": Member("configs/llada.py:quickstart", ({llada})),
}}}})}}
"""


@pytest.mark.parametrize(
    ("spec", "shared", "llada", "said"),
    [
        ("other", "", "", "no ladder 'other'"),
        ("none.py:quick", "", "", "none.py: no such file of ladders"),
        ("@:mine", "", "'batch_size=16',", "the ladder's families disagree in tokens: at 2e-06 EFLOPs ar has seen"),
        ("@:mine", "'budgets=(2.0, 1.0)',", "", "config.budgets"),
        ("@:mine", "", "'batch=16',", "config.batch"),
        ("@:mine", "oops", "", "mine.py: line 3: NameError: name 'oops' is not defined"),
        ("@:mine", "(", "", "mine.py: SyntaxError: "),
    ],
)
def test_a_ladder_that_is_none(spec, shared, llada, said, tmp_path):
    (tmp_path / "mine.py").write_text(LADDER.format(shared=shared, llada=llada))
    spec = spec.replace("@", str(tmp_path / "mine.py"))
    status, _, errors = run("scaling", ["status", "--ladder", spec, "--root", str(tmp_path / "root")])
    assert status == 2
    assert_refused(errors)
    assert said in errors
    assert not (tmp_path / "root").exists()


def test_plan_is_what_tools_plan_finds(quick):
    _, ladder, runs = quick
    arguments = ["plan", "--ladder", "quick", "--root", "R", "--topology", "h100:8", "--price", "3"]
    status, output, errors = run("scaling", arguments)
    assert status == 0, errors
    one = runs[-1]
    plan = make_plan(one.config(ROOT), stage_of(one.config(ROOT)), find_topology("h100:8"))
    expected = target(plan, one.config(ROOT))
    row = next(line.split() for line in output.splitlines() if line.startswith(one.name))
    assert int(row[1].replace(",", "")) == one.total_steps
    assert float(row[4]) == pytest.approx(expected["chip_hours"], rel=0.01)
    assert float(row[6]) == pytest.approx(3 * expected["chip_hours"], rel=0.01)
    commands = [line for line in output.splitlines() if line.startswith("python ")]
    assert sum("colajax.train" in command for command in commands) == len(runs)
    assert sum("--tasks all" in command for command in commands) == 3 * len(ladder.seeds) * len(ladder.budgets)


# A training and an evaluation that note when they begin and end; the fifth waits until its ladder has been killed.
STAND_IN = """
import json, os, sys, time
from pathlib import Path
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name = os.path.basename(sys.argv[0]) + " " + Path(arguments.get("--workdir", "data")).name
journal = Path({journal!r})
def note(event):
    with journal.open("a") as file:
        file.write(json.dumps([event, name, arguments.get("--step")]) + "\\n")
note("begins")
while len(journal.read_text().splitlines()) == 9 and not journal.with_name("killed").exists():
    time.sleep(0.01)
"""
TRAINS = (
    STAND_IN
    + """
steps = {steps} if any("budgets=" in argument for argument in sys.argv) else {first}
(Path(arguments["--workdir"]) / "checkpoints" / str(steps) / "state").mkdir(parents=True)
note("ends")
"""
)
EVALUATES = (
    STAND_IN
    + """
out = Path(arguments["--workdir"]) / "tasks" / arguments["--step"]
out.mkdir(parents=True)
note("ends")
(out / "tasks.json").write_text(json.dumps({{"mean": {{"accuracy": 0.5}}}}))
"""
)


@pytest.fixture
def stand_ins(quick, tmp_path):
    """(root with the stand-ins, journal)"""
    _, _, runs = quick
    journal, root = tmp_path / "journal", tmp_path / "root"
    (root / "colajax").mkdir(parents=True)
    (root / "tools").mkdir()
    (root / "colajax" / "__init__.py").touch()
    first = next(run.total_steps for run in runs if not run.budgets)
    (root / "colajax" / "train.py").write_text(
        TRAINS.format(journal=str(journal), steps=runs[-1].total_steps, first=first)
    )
    (root / "tools" / "evaluate.py").write_text(EVALUATES.format(journal=str(journal)))
    return root, journal


RUN = """
import pathlib, sys
from colajax.scaling.ladder import find_ladder, runs_of
from colajax.scaling.run import run_ladder
root, stand_ins, folder = map(pathlib.Path, sys.argv[1:])
ladder = find_ladder("quick", root / "configs" / "ladder.py")._replace(data=())
run_ladder(ladder, runs_of(ladder, str(folder), root), str(folder), {}, stand_ins)
"""


def test_a_ladder_killed_on_the_way_goes_on(stand_ins, tmp_path, capfd):
    """What was under way runs to its end beside the next call, which waits for it: nothing twice, nothing at once."""
    root, journal = stand_ins
    folder = tmp_path / "curves"
    ladder = find_ladder("quick", LADDERS)._replace(data=())
    runs = runs_of(ladder, str(folder), ROOT)
    command = [sys.executable, "-c", RUN, ROOT, root, folder]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not journal.exists() or len(journal.read_text().splitlines()) < 9:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    threading.Timer(0.5, journal.with_name("killed").touch).start()
    run_ladder(ladder, runs, str(folder), {}, root)
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [event for event, *_ in events] == ["begins", "ends"] * (len(events) // 2)
    assert all(a[1:] == b[1:] for a, b in zip(events[::2], events[1::2], strict=True))
    assert len(events) // 2 == len(runs) + sum(len(one.budgets) for one in runs)
    assert all(evaluated(one, step) for one in runs for step in one.budgets)
    said = capfd.readouterr()
    assert "another process is at it" in said.err
    lines = [line for line in said.out.splitlines() if line.endswith("done")]
    assert len(lines) == len([one for one in runs if one.budgets])
    assert status(runs[-1]) in lines
    before = journal.read_text()
    run_ladder(ladder, runs, str(folder), {}, root)
    assert journal.read_text() == before


def test_a_step_that_fails_ends_the_ladder(stand_ins, tmp_path):
    root, _ = stand_ins
    (root / "colajax" / "train.py").write_text("import sys\nsys.exit('error: no records')\n")
    ladder = find_ladder("quick", LADDERS)._replace(data=())
    runs = runs_of(ladder, str(tmp_path / "curves"), ROOT)
    with pytest.raises(UserError, match=r"cola_vae-1\.3M-66: training to step .* status 1 \(error: no records\)"):
        run_ladder(ladder, runs, str(tmp_path / "curves"), {}, root)
