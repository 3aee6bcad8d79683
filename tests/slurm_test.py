"""launch/slurm.sbatch through a real Slurm: two tasks train as one process does, stop, queue again, go on. Collected
where Slurm is installed (tests/README.md)."""

import re
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_runs
from slurm_cluster import slurm_cluster
from tiny_runs import QUICK_TO_COMPILE, ROOT, read_metrics

# python -m colajax.train that runs $SIGNAL when it prints the line of step 5 in the first start of a job.
SIGNALLING = """
import os, shlex, subprocess, time
from colajax.errors import run_main
from colajax.train import __main__, reporter
line, signalled = reporter.progress_line, "SLURM_RESTART_COUNT" in os.environ
def line_and_signal(step, *rest):
    global signalled
    if step == 5 and not signalled:
        signalled = True
        subprocess.run([*shlex.split(os.environ["SIGNAL"]), os.environ["SLURM_JOB_ID"]], check=True)
        time.sleep(2)  # the other task waits for this one meanwhile, and Slurm reaches both
    return line(step, *rest)
reporter.progress_line = line_and_signal
run_main(__main__.main)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "signalling.py").write_text(SIGNALLING)
    (folder / "python").write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {folder}/signalling.py "$@"\n')
    (folder / "python").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def slurm(folder):
    with slurm_cluster(folder, cpus=2) as environment:
        yield environment | QUICK_TO_COMPILE | {
            "SBATCH_OUTPUT": str(folder / "%j.log"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip


@pytest.fixture(scope="module")
def arguments(records):
    overrides = [f"--config.{override}" for override in tiny_runs.overrides("vae")]
    return [f"config={tiny_runs.spec('vae')}", f"records={records}", *overrides]


def finish(slurm, folder, *command) -> tuple[dict[str, str], str]:
    """Submits a job and waits until it is through: what Slurm says of it, and its log."""
    submitted = subprocess.run(command, env=slurm, cwd=ROOT, capture_output=True, text=True, check=True)
    job = re.search(r"Submitted batch job (\d+)", submitted.stdout)[1]

    def ask(*question):
        return subprocess.run(question, env=slurm, capture_output=True, text=True, check=True).stdout

    while ask("squeue", "--noheader"):
        time.sleep(0.5)
    found = dict(re.findall(r"(\w+)=(\S+)", ask("scontrol", "show", "job", job)))
    return found, (folder / f"{job}.log").read_text()


def submit(*settings, tasks: int = 2):
    return ["bash", "launch/slurm.sbatch", "nodes=1", f"tasks_per_node={tasks}", *settings]


def test_two_tasks_stop_queue_again_and_end_as_one_process_does(slurm, folder, arguments, alone):
    workdir = folder / "stopped"
    job, log = finish(
        slurm | {"SIGNAL": "scancel --signal=TERM"}, folder,
        *submit(*arguments, f"python={folder}/python", f"workdir={workdir}"),
    )  # fmt: skip
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "1", "0:0"), log[-3000:]
    assert (job["NumTasks"], job["NumNodes"]) == ("2", "1")
    stopped = re.search(r"^0: .*: stopped at step (\d+), saved", log, re.MULTILINE)[1]
    assert f"going on from step {stopped}\n" in log
    assert log.count("step 12/12") == 1
    found = read_metrics(workdir)
    left = read_metrics(alone)
    assert [(line["step"], line["kind"]) for line in found] == [(line["step"], line["kind"]) for line in left]
    for line, expected in zip(found, left, strict=True):
        np.testing.assert_allclose(line["loss"], expected["loss"], rtol=1e-5)


def test_scancel_saves_and_ends_for_good(slurm, folder, arguments):
    workdir = folder / "cancelled"
    job, log = finish(
        slurm | {"SIGNAL": "scancel"}, folder,
        *submit(*arguments, f"python={folder}/python", f"workdir={workdir}", tasks=1),
    )  # fmt: skip
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), log[-3000:]
    stopped = re.search(r"stopped at step (\d+), saved", log)[1]
    assert (workdir / "checkpoints" / stopped).is_dir()


def test_a_mistake_is_not_queued_again(slurm, folder, arguments):
    """By sbatch itself, with options of its own and the settings in a file."""
    (folder / "run.txt").write_text("\n".join(["# a run", *arguments, "--config.log_every=0"]))
    job, log = finish(
        slurm, folder, "sbatch", "--ntasks=2", "launch/slurm.sbatch", str(folder / "run.txt"),
        f"python={sys.executable}", f"workdir={folder}/mistaken",
    )  # fmt: skip
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "2:0"), log[-3000:]
    assert "error: config.log_every is 0" in log
