"""The account of a run's time: against a clock outside it, and by hand."""

import json
import signal
import subprocess
import sys
import time

import pytest
import tiny_runs
from tiny_runs import ROOT, STOPPED, environment

from colajax.train.goodput import KINDS, totals


def test_the_time_of_a_run_that_is_killed_and_started_again_is_accounted_for(records, tmp_path):
    """Of two processes and a second between them, to one part in a hundred of what passed here."""
    workdir = tmp_path / "run"
    given = [f"--config.{override}" for override in (*tiny_runs.overrides("vae"), f"records={records}")]
    arguments = ["--config", tiny_runs.spec("vae"), "--workdir", str(workdir), *given]

    def run(*start):
        return subprocess.run(
            [sys.executable, *start, *arguments], cwd=ROOT, env=environment(1), capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    began = time.monotonic()
    killed = run("-c", STOPPED, str(int(signal.SIGKILL)), "10", str(workdir / "checkpoints" / "4"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    time.sleep(1)
    ended = run("-m", "colajax.train")
    assert ended.returncode == 0, ended.stderr[-3000:]
    seconds = time.monotonic() - began
    found = totals(map(json.loads, (workdir / "timeline.jsonl").read_text().splitlines()))
    # What is not accounted for: Python's own start, its end, and ours, which take longer on a machine that is busy.
    empty = time.monotonic()
    subprocess.run([sys.executable, "-c", ""], check=True)
    empty = time.monotonic() - empty
    assert seconds - 1.2 - 15 * empty < sum(found.values()) <= 1.01 * seconds
    assert found.keys() == set(KINDS)
    assert min(found.values()) >= 0
    assert found["lost"] > 1
    assert all(found[kind] > 0 for kind in ("start", "restore", "compile", "updates", "evaluation", "save"))
    (line,) = [line for line in ended.stdout.splitlines() if " in all: " in line]
    assert f"start {found['start'] / sum(found.values()):.1%}" in line


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], {}),
        ([("start", 0, {"began": 100.0})], {}),
        ([("spent", 4, {"updates": 3.0})], {}),  # of an older run, whose starts do not say when they were
        (
            [("start", 0, {"began": 100.0}), ("spent", 4, {"start": 5.0, "updates": 3.0}),
             ("spent", 8, {"updates": 4.0, "save": 1.0})],
            {"start": 5.0, "updates": 7.0, "save": 1.0},
        ),
        (  # killed behind 8, whose checkpoint was not whole; started again 20 s after the last account
            [("start", 0, {"began": 100.0}), ("spent", 4, {"start": 5.0, "updates": 3.0}),
             ("spent", 8, {"updates": 4.0, "compile": 2.0}), ("start", 4, {"began": 134.0}),
             ("spent", 8, {"start": 6.0, "updates": 4.5})],
            {"start": 11.0, "updates": 7.5, "compile": 2.0, "lost": 24.0},
        ),
        (  # killed before there was any
            [("start", 0, {"began": 100.0}), ("start", 0, {"began": 130.0}), ("spent", 4, {"updates": 3.0})],
            {"lost": 30.0, "updates": 3.0},
        ),
        (  # a clock that is behind that of the machine before
            [("start", 0, {"began": 100.0}), ("spent", 4, {"updates": 3.0}), ("start", 4, {"began": 90.0}),
             ("spent", 8, {"updates": 1.0})],
            {"updates": 4.0},
        ),
        (
            [("start", 0, {"began": 100.0}), ("spent", 4, {"updates": 3.0}),
             ("spent", 8, {"updates": 4.0, "data": 1.0, "save": 1.0}), ("went back", 4, {}),
             ("spent", 12, {"updates": 8.0})],
            {"updates": 11.0, "lost": 6.0},
        ),
    ],
)  # fmt: skip
def test_what_a_timeline_adds_up_to(lines, expected):
    found = totals({"event": event, "step": step, **more} for event, step, more in lines)
    assert {kind: seconds for kind, seconds in found.items() if seconds} == expected
