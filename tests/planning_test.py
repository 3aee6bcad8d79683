"""Plans: memory against arrays, what does not fit and what would, the search, the command line."""

import json
import re
import runpy
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import ROOT, tiny_config

from colajax.errors import UserError
from colajax.planning.advice import refusal
from colajax.planning.plan import analytic_plan, count_kept, target
from colajax.planning.search import search
from colajax.planning.topology import Topology, find_topology
from colajax.stages import STAGES
from colajax.train.config import changed

pytestmark = pytest.mark.optimised


@pytest.mark.parametrize("name", ["vae", "joint", "llada"])
def test_activations_follow_rows_and_remat(name):
    """Without rematerialisation, at least the arrays that every layer's products need; with it, less and less."""
    tall = ["vae.encoder_num_blocks=5", "vae.decoder_num_blocks=5"]
    config = tiny_config(name, *(["llama.num_hidden_layers=10"] if name == "llada" else tall))
    width = config.llama.hidden_size if name == "llada" else config.vae.dim

    def kept(**values):
        return analytic_plan(changed(config, **values), STAGES[name], find_topology("cpu:4"))["memory"]["activations"]

    one = {"mesh": {"data": 4, "fsdp": 1}}
    none, dots, full = (kept(remat=remat, **one) for remat in ("none", "dots", "full"))
    rows = config.batch_size / 4
    assert full < dots < none
    assert none > 10 * rows * config.sequence_length * width * 4 * 6  # q, k, v, out, up, down of ten blocks
    # A row costs what it costs; what is left are gradients, as large as the parameters.
    twice = kept(remat="none", batch_size=2 * config.batch_size, **one)
    parameters = analytic_plan(changed(config, **one), STAGES[name], find_topology("cpu:4"))["memory"]["parameters"]
    assert twice - parameters == 2 * (none - parameters)


# ---- plans ----------------------------------------------------------------------------------------------------------

JOINT = str(ROOT / "configs/cola_joint.py")


@pytest.fixture
def run_plan(monkeypatch, capsys):
    """run_plan(*arguments): (status, output, errors) of tools/plan.py, run in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tools/plan.py", *arguments])
        status = 0
        try:
            runpy.run_path(str(ROOT / "tools/plan.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def planned(run_plan):
    def run(*arguments) -> dict:
        status, output, errors = run_plan(*arguments, "--json")
        assert status == 0, errors
        return json.loads(output)

    return run


@pytest.fixture
def refused(run_plan):
    def run(*arguments) -> str:
        status, output, errors = run_plan(*arguments)
        assert (status, output, errors.count("\n"), errors[:7]) == (2, "", 1, "error: ")
        return errors

    return run


def test_the_command_line_in_a_process_of_its_own():
    command = [sys.executable, str(ROOT / "tools/plan.py"), "--config", JOINT, "--topology", "h100:64"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "not compiled" in done.stdout
    done = subprocess.run([*command, "--mesh", "fsdp=7"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_plan_for_gpus(planned):
    plan = planned("--config", JOINT, "--topology", "h100:64", "--eflops", "1000")
    assert (plan["how"], plan["chips"], plan["mesh"]) == ("analytic", 64, {"data": 4, "fsdp": 16, "tensor": 1})
    parameters = plan["checkpoint_bytes"] / 4
    assert 3 * 2.3e9 < parameters < 3 * 2.6e9 + 0.3e9  # two Adam moments beside 1.8 B + 0.5 B, and the reference
    reached = plan["target"]
    assert plan["step_seconds"] == pytest.approx(plan["useful_flops"] / (64 * 989e12 * 0.4))
    assert reached["days"] == pytest.approx(reached["steps"] * plan["step_seconds"] / 86400)
    assert reached["chip_hours"] == pytest.approx(64 * 24 * reached["days"])
    assert reached["steps"] == 128_441  # of 6 x 1.8e9 x 1408 x 512 operations
    assert reached["checkpoints"] == 4  # of steps 50,000, 100,000, 128,000 and 128,441


def test_what_does_not_fit_is_refused_with_what_would(refused):
    message = refused(
        "--config", str(ROOT / "configs/cola_vae.py:quickstart"), "--topology", "v5e:2x2", "--mesh", "data=4",
        "--config.batch_size=131072",
    )  # fmt: skip
    needed, had = (float(x) for x in re.search(r"would need ([\d.]+) GB and has ([\d.]+);", message).groups())
    assert needed > 2 * had
    assert had == 16.9
    assert "by the analytic model (not compiled)" in message
    assert "--config.remat=dots" in message


def test_a_batch_that_does_not_divide_names_one_that_does(refused):
    assert "1536" in refused("--config", JOINT, "--topology", "v5e:16x16")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--topology", "v5p:5x5x5"), "4x4x8"),
        (("--topology", "h100:64", "--mesh", "fsdp=7"), "64"),
        (("--topology", "h100:64", "--steps", "0"), "--steps 0"),
        (("--topology", "h100:64", "--config.batch=3"), "batch"),
        (("--topology", "h100:64", "x"), "x: unknown argument"),
        (("--topology", "h100:64", "--slices", "2"), "without slices"),
        (("--topology", "h100:64", "--search", "--steps", "9"), "--search"),
    ],
)
def test_mistakes(refused, arguments, expected):
    assert expected in refused("--config", JOINT, *arguments)


def test_what_would_fit_does():
    """The advice, followed, is a plan that fits; and where nothing helps it says so."""
    config, make = tiny_config("vae", "remat=none", "batch_size=64"), STAGES["vae"]
    peak = analytic_plan(changed(config, mesh={"fsdp": 1}), make, find_topology("cpu:1"))["memory"]["peak"]
    for share, helps in ((0.6, True), (0.01, False)):
        topology = Topology("small:1", "cpu", 1, share * peak)
        tight = changed(config, mesh={"fsdp": 1})
        plan = analytic_plan(tight, make, topology)
        assert not plan["fits"]
        message = str(refusal(plan, tight, make, topology))
        assert ("it would fit" in message) is helps
        if helps:
            flags = [word.removeprefix("--config.") for word in message.split() if word.startswith("--config.")]
            advised = tiny_config("vae", "remat=none", "batch_size=64", "mesh.fsdp=1", *flags)
            assert analytic_plan(advised, make, topology)["fits"]


def test_dividing_the_state_further_is_advised_as_flags_that_every_command_takes():
    begin = ("remat=full", "mesh.data=8", "mesh.fsdp=1", "mesh.tensor=-1", "batch_size=8", "objective.mask_every=2")
    config, make = tiny_config("vae", *begin), STAGES["vae"]
    peak = analytic_plan(config, make, find_topology("cpu:8"))["memory"]["peak"]
    topology = Topology("small:8", "cpu", 8, 0.5 * peak)
    message = str(refusal(analytic_plan(config, make, topology), config, make, topology))
    flags = [word.removeprefix("--config.") for word in message.split() if word.startswith("--config.")]
    assert {"mesh.data=-1", "mesh.tensor=1"} < set(flags)
    assert analytic_plan(tiny_config("vae", *begin, *flags), make, topology)["fits"]


def test_search_ranks_what_fits_and_keeps_what_is_done():
    config, make, topology = tiny_config("vae", "mesh.fsdp=2"), STAGES["vae"], Topology("gpus", "NVIDIA H100", 4, 80e9)
    seen = []
    plans = search(config, make, topology, report=seen.append)
    assert len(seen) == len(plans) > 5
    speeds = [plan["tokens_per_second"] for plan in plans]
    assert speeds == sorted(speeds, reverse=True)
    varied = ("remat", "accumulation_steps", "batch_size")
    tried = [(*(plan[key] for key in varied), *plan["mesh"].values()) for plan in seen]
    assert len(set(tried)) == len(tried)
    assert {plan["batch_size"] for plan in plans} == {4, 8, 16}
    assert {plan["remat"] for plan in plans} == {"none", "dots", "full"}
    assert {plan["mesh"]["fsdp"] for plan in plans} >= {1, 2, 4}

    def interrupt(plan):
        seen.append(plan)
        if len(seen) == 3:
            raise KeyboardInterrupt

    seen = []
    assert len(search(config, make, topology, report=interrupt)) == 3
    with pytest.raises(UserError, match="more devices"):
        search(config, make, Topology("gpus", "NVIDIA H100", 4, 1e3), report=seen.append)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
def test_checkpoints_that_are_kept(steps, checkpoint_every, keep_every):
    saved = sorted({*range(checkpoint_every, steps + 1, checkpoint_every), steps})
    kept = {step for step in saved if step % keep_every == 0 or step in saved[-2:]}
    assert count_kept(steps, checkpoint_every, keep_every) == len(kept)
    budgets = {1, 5, 12, 40}
    saved = sorted({*saved, *(step for step in budgets if step <= steps)})
    kept = {step for step in saved if step % keep_every == 0 or step in saved[-2:] or step in budgets}
    assert count_kept(steps, checkpoint_every, keep_every, budgets) == len(kept)


def test_target():
    config = changed(tiny_config("vae"), checkpoint_every=4, keep_every=100)
    plan = {"eflops_per_step": 0.5, "checkpoint_bytes": 10, "step_seconds": 36.0, "chips": 2}
    assert target(plan, config, steps=3)["checkpoints"] == 1
    assert target(plan, config, steps=200) == {
        "steps": 200, "eflops": 100.0, "checkpoints": 3, "storage_bytes": 30, "days": pytest.approx(2 / 24),
        "chip_hours": pytest.approx(4.0),
    }  # fmt: skip
    assert target(plan, config, eflops=1.2)["steps"] == 3
