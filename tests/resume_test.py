"""A run that is killed or stopped and started again ends with the bits of one that was left alone: real processes."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_runs
from etils import epath
from tiny_runs import QUICK_TO_COMPILE, ROOT, STOPPED, read_metrics, tiny_config

from colajax.errors import UserError
from colajax.stages import stage_of
from colajax.stages.joint import JointStage
from colajax.stages.vae import VAEStage
from colajax.train.behind import Behind
from colajax.train.fingerprint import fingerprint
from colajax.train.loop import train
from colajax.train.metrics import MetricsWriter

LAST = 12  # steps of a run; tiny_runs saves every 4 and evaluates every 5
BUDGETS = (2, 9, LAST)  # steps of which checkpoints are kept for good and evaluated

# python -m colajax.train that is killed at a place of what it does at step 9: python -c KILLED_AT PLACE, ARGUMENTS.
KILLED_AT = """
import os, signal, sys
from colajax.errors import run_main
from colajax.train import __main__, checkpoint
place, save = sys.argv.pop(1), checkpoint.Checkpoints.save
def save_and_die(self, state, facts):
    if int(state.step) == 9 and place == "evaluated":
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, state, facts)
    if int(state.step) == 9 and place == "saved":
        self._manager.wait_until_finished()
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.Checkpoints.save = save_and_die
run_main(__main__.main)
"""


def budgets(stage: str, steps) -> str:
    """The override whose budgets these steps reach."""
    config = tiny_config(stage, "init_from=x") if stage == "joint" else tiny_config(stage)
    per_step = stage_of(config)(config, 0, 1).eflops_per_step(config.batch_size)
    return f"budgets={tuple((step - 0.5) * per_step for step in steps)}"


class Runs:
    """Trainings of one stage under a folder, as processes that share what XLA has compiled."""

    def __init__(self, folder, stage, overrides):
        self.folder, self.stage = folder, stage
        self.environment = os.environ | QUICK_TO_COMPILE
        self.overrides = [*tiny_runs.overrides(stage), *overrides, budgets(stage, BUDGETS), "total_steps=0"]

    def run(self, name, *, stop: tuple[int, int] | None = None, killed_at: str | None = None):
        """Starts or continues the training `name`; stop: (signal, at the line of which step); killed_at: a place of
        KILLED_AT."""
        workdir = self.folder / name
        start = ["-m", "colajax.train"]
        if stop:
            start = ["-c", STOPPED, *map(str, stop), str(workdir / "checkpoints" / "2")]
        if killed_at:
            start = ["-c", KILLED_AT, killed_at]
        arguments = ["--config", tiny_runs.spec(self.stage), "--workdir", str(workdir)]
        return subprocess.run(
            [sys.executable, *start, *arguments, *[f"--config.{override}" for override in self.overrides]],
            capture_output=True, text=True, check=False, cwd=ROOT, env=self.environment,
        )  # fmt: skip

    def saved(self, name) -> set[str]:
        return {path.name for path in (self.folder / name / "checkpoints").iterdir() if path.name.isdigit()}

    def checkpoint(self, name, step: int) -> dict:
        """Everything in a checkpoint, {path: numpy array}."""
        tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
            self.folder / name / "checkpoints" / str(step) / "state"
        )
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}

    def metrics(self, name) -> str:
        return (self.folder / name / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def stage_one(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    runs = Runs(folder, "vae", [f"records={records}"])
    result = runs.run("alone")
    assert result.returncode == 0, result.stderr
    return runs


@pytest.fixture(scope="module")
def stage_two(records, stage_one, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    overrides = [f"records={records}", f"init_from={stage_one.folder / 'alone'}"]
    runs = Runs(folder, "joint", overrides)
    result = runs.run("alone")
    assert result.returncode == 0, result.stderr
    return runs


def _baseline(stage):
    @pytest.fixture(scope="module")
    def runs(records, stage_one, tmp_path_factory):
        runs = Runs(tmp_path_factory.mktemp(stage), stage, [f"records={records}"])
        result = runs.run("alone")
        assert result.returncode == 0, result.stderr
        return runs

    return runs


ar, llada = _baseline("ar"), _baseline("llada")


@pytest.fixture(params=["stage_one", "stage_two"])
def runs(request):
    return request.getfixturevalue(request.param)


def assert_same_end(runs, name):
    found, expected = runs.checkpoint(name, LAST), runs.checkpoint("alone", LAST)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype
        assert found[path].tobytes() == leaf.tobytes(), path
    assert runs.metrics(name) == runs.metrics("alone")


@pytest.mark.parametrize("runs", ["stage_one", "stage_two", "llada"], indirect=True)
def test_killed_at_any_moment_after_its_first_checkpoint(runs):
    at = random.SystemRandom().randint(5, LAST)
    print(f"killed at the line of step {at}")
    killed = runs.run("killed", stop=(signal.SIGKILL, at))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "2" in runs.saved("killed")
    assert str(LAST) not in runs.saved("killed")
    again = runs.run("killed")
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stdout
    assert_same_end(runs, "killed")


@pytest.mark.parametrize("runs", ["stage_two", "ar"], indirect=True)
def test_stopped_between_checkpoints(runs):
    stopped = runs.run("stopped", stop=(signal.SIGTERM, 5))  # noticed while step 6 is under way
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "stopped at step 6, saved" in stopped.stdout
    assert "step 7/" not in stopped.stdout
    assert "6" in runs.saved("stopped")
    assert [json.loads(line)["step"] for line in runs.metrics("stopped").splitlines()] == [1, 2, 2, 3, 4, 5, 5, 6]
    again = runs.run("stopped")
    assert again.returncode == 0, again.stderr
    assert "going on from step 6\n" in again.stdout
    assert_same_end(runs, "stopped")


def test_killed_twice_at_a_budget(stage_one):
    """Between its evaluation and its checkpoint, and behind that one."""
    for place in ("evaluated", "saved"):
        killed = stage_one.run("budget", killed_at=place)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert ("9" in stage_one.saved("budget")) == (place == "saved")
    again = stage_one.run("budget")
    assert again.returncode == 0, again.stderr
    assert "going on from step 9\n" in again.stdout
    assert_same_end(stage_one, "budget")
    assert stage_one.saved("budget") == stage_one.saved("alone")


def test_an_evaluation_that_is_owed_at_a_budget_is_made_up_for(stage_one):
    shutil.copytree(stage_one.folder / "alone", stage_one.folder / "owed")
    *lines, last = stage_one.metrics("alone").splitlines(keepends=True)
    assert json.loads(last)["kind"] == "eval"
    (stage_one.folder / "owed" / "metrics.jsonl").write_text("".join(lines))
    assert train(tiny_config("vae", *stage_one.overrides), VAEStage, stage_one.folder / "owed") == 0
    found, expected = json.loads(stage_one.metrics("owed").splitlines()[-1]), json.loads(last)
    assert (found.pop("kind"), found["step"]) == (expected.pop("kind"), LAST)
    assert found == pytest.approx(expected, rel=1e-4)  # of other optimisations of the compiler


@pytest.mark.parametrize(
    ("steps", "total", "said"),
    [((3, LAST), LAST, "step 3, of which the run"), ((2, 13), LAST, "are step 13, beyond total_steps (12)")],
)
def test_a_budget_that_is_passed_or_never_reached(stage_one, steps, total, said):
    overrides = [*stage_one.overrides, budgets("vae", steps), f"total_steps={total}"]
    with pytest.raises(UserError) as error:
        train(tiny_config("vae", *overrides), VAEStage, stage_one.folder / "alone")
    assert said in str(error.value)


@pytest.mark.parametrize("value", ["(0.0,)", "(2.0, 1.0)", "(1.0, 1.0)", "('1',)", "(True,)", "(1e999,)", "((1.0,),)"])
def test_budgets_that_are_none(value, records, tmp_path):
    with pytest.raises(UserError, match=r"^config.budgets is .*: expected EFLOPs that grow"):
        train(tiny_config("vae", f"records={records}", f"budgets={value}"), VAEStage, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_left_alone_has_reported_every_step_and_moved_every_group(runs):
    lines = [json.loads(line) for line in runs.metrics("alone").splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, LAST + 1))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [2, 5, 9, 10, LAST]
    assert {"2", "9", str(LAST)} == runs.saved("alone")  # of budgets; the latest two
    before, after = runs.checkpoint("alone", 9), runs.checkpoint("alone", LAST)
    assert before["['step']"] == 9
    moved = {path for path in after if after[path].tobytes() != before[path].tobytes()}
    heads = [path for path in after if "['head']['kernel']" in path and "['frozen']" not in path]
    assert len(heads) >= 6  # parameter and both moments, of encoder and decoder
    assert moved.issuperset(heads)
    assert not any(path.startswith("['frozen']") for path in moved)


def test_every_line_and_checkpoint_says_what_it_has_cost(stage_two):
    config = tiny_config("joint", *stage_two.overrides)
    ledger = functools.partial(JointStage(config, 0, 1).ledger, config.batch_size)
    lines = [json.loads(line) for line in stage_two.metrics("alone").splitlines()]
    assert all({name: line[name] for name in ledger(1)} == ledger(line["step"]) for line in lines)
    with ocp.CheckpointManager(stage_two.folder / "alone" / "checkpoints") as manager:
        assert {step: dict(manager.metadata(step).custom_metadata) for step in manager.all_steps()} == {
            step: ledger(step) | {"skipped": 0} for step in BUDGETS
        }


def test_stage_two_begins_with_the_vae_of_stage_one_and_keeps_its_encoder(stage_one, stage_two):
    first, second = stage_one.checkpoint("alone", LAST), stage_two.checkpoint("alone", LAST)
    frozen = {path.removeprefix("['frozen']['reference']"): leaf for path, leaf in second.items() if "frozen" in path}
    encoder = "['params']['vae']['encoder']"
    expected = {path.removeprefix(encoder): leaf for path, leaf in first.items() if path.startswith(encoder)}
    assert frozen.keys() == expected.keys()
    for path, leaf in expected.items():
        assert frozen[path].tobytes() == leaf.tobytes(), path


def test_stage_two_knows_what_it_began_with(stage_one, stage_two, capsys):
    def began(name):
        return json.loads((stage_two.folder / name / "config.json").read_text())["facts"]["init"]

    first = stage_one.checkpoint("alone", LAST)
    vae = {"vae": {}}
    for path, leaf in first.items():
        if path.startswith("['params']['vae']"):
            *parents, last = path.removeprefix("['params']['vae']")[2:-2].split("']['")
            functools.reduce(lambda node, key: node.setdefault(key, {}), parents, vae["vae"])[last] = leaf
    assert began("alone") == {"step": LAST, "digest": fingerprint(vae)}

    # Another checkpoint of it is another beginning; a run that has begun goes on with its own.
    config = tiny_config(
        "joint", *stage_two.overrides, "init_step=9", "total_steps=4", "budgets=()", "optimizer.warmup_steps=2"
    )
    assert train(config, JointStage, stage_two.folder / "early") == 0
    assert "step 9" in capsys.readouterr().out
    assert began("early")["step"] == 9
    assert began("early")["digest"] != began("alone")["digest"]


def test_the_timeline_has_every_start_and_the_time(stage_one):
    lines = [json.loads(line) for line in (stage_one.folder / "alone" / "timeline.jsonl").read_text().splitlines()]
    first = lines[0]
    assert (first["event"], first["step"], first["jax"]) == ("start", 0, jax.__version__)
    assert {"commit", "devices", "processes", "mesh", "python"} <= first.keys()
    events = [line["event"] for line in lines]
    assert events.count("train") >= LAST
    assert events.count("evaluation") == 5
    assert events.count("save") == 5
    assert all(line["data_wait_seconds"] <= line["seconds"] for line in lines if line["event"] == "train")
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


def test_lines_after_the_checkpoint_that_a_run_goes_on_from_are_dropped(tmp_path):
    files = Behind()
    writer = MetricsWriter(epath.Path(tmp_path), 0, files)
    for step in range(1, 7):
        writer.write(step, "train", {"loss": float(step)})
        if step in (3, 5):  # at 5, killed after the flush and before the checkpoint was whole
            writer.flush()
    assert files.wait()
    assert read_metrics(tmp_path)[-1]["step"] == 5
    writer = MetricsWriter(epath.Path(tmp_path), 3, files)
    writer.write(4, "train", {"loss": 0.5})
    writer.close()
    files.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 0.5)]


def test_a_complete_run_started_again_stays_as_it_is(stage_one, capsys):
    before = stage_one.checkpoint("alone", LAST), stage_one.metrics("alone")
    assert train(tiny_config("vae", *stage_one.overrides), VAEStage, stage_one.folder / "alone") == 0
    assert f"going on from step {LAST}" in capsys.readouterr().out
    after = stage_one.checkpoint("alone", LAST), stage_one.metrics("alone")
    assert after[1] == before[1]
    assert all(after[0][path].tobytes() == leaf.tobytes() for path, leaf in before[0].items())
