"""launch/local.sh with real processes: two train and are killed, one goes on, and ends as one that was left alone."""

import os
import subprocess
import sys

import numpy as np
import tiny_runs
from tiny_runs import QUICK_TO_COMPILE, ROOT, read_metrics

# python -m colajax.train whose second process is killed once checkpoint 4 is whole, while the first waits at step 5.
KILLED = """
import os, pathlib, signal, sys, threading, time
from colajax.errors import run_main
from colajax.train import __main__, reporter
checkpoint, line = pathlib.Path(sys.argv.pop(1)), reporter.progress_line
def line_once_saved(step, *rest):
    while step == 5 and not checkpoint.exists():
        time.sleep(0.01)
    if step == 5:
        time.sleep(60)  # until the second process is dead and this one ended for it
    return line(step, *rest)
def die_once_saved():
    while not checkpoint.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
reporter.progress_line = line_once_saved
if os.environ["JAX_PROCESS_ID"] == "1":
    threading.Thread(target=die_once_saved, daemon=True).start()
run_main(__main__.main)
"""


def test_two_processes_are_killed_and_one_goes_on(tmp_path, records, alone):
    overrides = [f"--config.{override}" for override in tiny_runs.overrides("vae")]
    workdir = tmp_path / "run"
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "python").write_text(
        f'#!/bin/sh\nshift 2\nexec {sys.executable} {tmp_path}/killed.py {workdir}/checkpoints/4 "$@"\n'
    )
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | QUICK_TO_COMPILE | {"PYTHONPATH": str(ROOT)}

    def local(processes, python):
        return subprocess.run(
            ["bash", "launch/local.sh", f"processes={processes}", f"devices={2 // processes}", f"python={python}",
             f"workdir={workdir}", f"config={tiny_runs.spec('vae')}", f"records={records}", *overrides],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip

    killed = local(2, tmp_path / "python")
    assert killed.returncode == 137, killed.stderr[-3000:]
    assert killed.stderr.count("ended with status") == 2
    again = local(1, sys.executable)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "going on from step 4\n" in again.stdout
    found, expected = read_metrics(workdir), read_metrics(alone)
    assert [(line["step"], line["kind"]) for line in found] == [(line["step"], line["kind"]) for line in expected]
    for line, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(line["loss"], other["loss"], rtol=1e-5)
