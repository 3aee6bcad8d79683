"""A run that changes machines, begun on four devices and continued on two others: against one left alone on one device.
local_test.py changes the number of processes."""

import signal
import subprocess
import sys

import numpy as np
import tiny_runs
from tiny_runs import ROOT, STOPPED, environment, read_metrics

STEPS = 12


def start(first, workdir, records, devices: int, mesh: str, *, stop: int | None = None) -> tuple[int, str]:
    """The training in `workdir`, with how it ended and what it said; with `stop` it gets SIGTERM at the line of that
    step."""
    overrides = [*tiny_runs.overrides("joint"), f"total_steps={STEPS}", f"records={records}", f"init_from={first}"]
    overrides += [f"mesh.{axis}={size}" for axis, size in zip(("data", "fsdp", "tensor"), mesh.split(","), strict=True)]
    begin = ["-m", "colajax.train"]
    if stop is not None:
        begin = ["-c", STOPPED, str(int(signal.SIGTERM)), str(stop), str(workdir / "checkpoints" / "4")]
    ended = subprocess.run(
        [sys.executable, *begin, "--config", tiny_runs.spec("joint"), "--workdir", str(workdir),
         *[f"--config.{override}" for override in overrides]],
        cwd=ROOT, env=environment(devices), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stdout


def test_resumed_on_another_mesh(records, alone, tmp_path):
    status, said = start(alone, tmp_path / "still", records, 1, "1,1,1")
    assert status == 0, said
    moved = tmp_path / "moved"
    status, said = start(alone, moved, records, 4, "2,1,2", stop=5)
    assert status == 128 + signal.SIGTERM, said
    stopped = max(int(path.name) for path in (moved / "checkpoints").iterdir() if path.name.isdigit())
    assert 5 < stopped < STEPS
    status, said = start(alone, moved, records, 2, "1,2,1")
    assert status == 0, said
    assert f"going on from step {stopped}\n" in said

    found, expected = read_metrics(moved), read_metrics(tmp_path / "still")
    assert [line["step"] for line in found if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert len(found) == len(expected)
    for line, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(line["loss"], other["loss"], rtol=1e-5)
