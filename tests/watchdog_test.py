"""A real training that waits for ever for its data is ended, and says where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import tiny_runs
from tiny_runs import ROOT, environment

HANGS = """
import sys, time
from colajax.errors import run_main
from colajax.train import __main__, updates
next_batch = updates.Updates.next_batch
def never_comes(self):
    while self.begun == 5:
        time.sleep(1)
    return next_batch(self)
updates.Updates.next_batch = never_comes
run_main(__main__.main)
"""


def test_a_run_that_hangs_is_ended(records, tmp_path):
    alive = tmp_path / "alive"  # as the supervisor looks at it
    alive.touch()
    os.utime(alive, (0, 0))
    overrides = (*tiny_runs.overrides("vae"), f"records={records}", "hang_seconds=25")
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, "--config", tiny_runs.spec("vae"), "--workdir", str(tmp_path / "run"),
         *(f"--config.{override}" for override in overrides)],
        cwd=ROOT, env=environment(1, COLAJAX_ALIVE=str(alive)), capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "Timeout (0:00:25)!" in ended.stderr
    assert "never_comes" in ended.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
    assert alive.read_text() == "25\n"
    assert alive.stat().st_mtime > 0


def test_a_process_that_is_frozen_while_it_starts_is_ended_by_its_supervisor(tmp_path):
    """It says after how long before it imports what takes seconds."""
    alive = tmp_path / "alive"
    alive.touch()
    started = subprocess.Popen(
        [sys.executable, "-m", "colajax.train", "--help"], cwd=ROOT, env=environment(1, COLAJAX_ALIVE=str(alive)),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not alive.read_text() and started.poll() is None:
            time.sleep(0.001)
        os.kill(started.pid, signal.SIGSTOP)
        assert "jaxlib" not in Path(f"/proc/{started.pid}/maps").read_text()
        assert alive.read_text() == "600\n"
    finally:
        started.kill()
        started.wait()
