"""A run that changes machines, begun on 4 devices, continued on 2 processes: against one left alone on one device."""

import signal
import subprocess
import sys

import numpy as np
import tiny_runs
from tiny_runs import ROOT, STOPPED, environment, read_metrics

STEPS = 40


def start(first, workdir, records, devices: int, mesh: str, *, stop: int | None = None, **more: str):
    """A process of the training in `workdir`; with `stop` it gets SIGTERM at the line of that step."""
    overrides = [*tiny_runs.overrides("joint"), f"total_steps={STEPS}", "checkpoint_every=10", "keep_every=10",
                 f"records={records}",
                 f"init_from={first}"]  # fmt: skip
    overrides += [f"mesh.{axis}={size}" for axis, size in zip(("data", "fsdp", "tensor"), mesh.split(","), strict=True)]
    begin = ["-m", "colajax.train"]
    if stop is not None:
        begin = ["-c", STOPPED, str(int(signal.SIGTERM)), str(stop), str(workdir / "checkpoints" / "10")]
    return subprocess.Popen(
        [sys.executable, *begin, "--config", tiny_runs.spec("joint"), "--workdir", str(workdir),
         *[f"--config.{override}" for override in overrides]],
        cwd=ROOT, env=environment(devices, **more), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_resumed_on_other_meshes_and_process_counts(records, alone, tmp_path):
    still = start(alone, tmp_path / "still", records, 1, "1,1,1")
    assert still.wait() == 0, still.communicate()

    moved = tmp_path / "moved"
    cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{tiny_runs.free_port()}", "JAX_NUM_PROCESSES": "2"}
    phases = ((4, "2,1,2", 23, 1), (1, "1,2,1", None, 2))
    ended = []  # the step of each phase
    for devices, mesh, stop, count in phases:
        processes = [
            start(alone, moved, records, devices, mesh, stop=stop,
                  **(cluster | {"JAX_PROCESS_ID": str(i)} if count > 1 else {}))
            for i in range(count)
        ]  # fmt: skip
        outputs = [process.communicate()[0] for process in processes]
        expected = 0 if stop is None else 128 + signal.SIGTERM
        assert [process.returncode for process in processes] == [expected] * count, outputs
        if ended:
            assert f"going on from step {ended[-1]}\n" in outputs[0]
        ended.append(max(int(path.name) for path in (moved / "checkpoints").iterdir() if path.name.isdigit()))
    assert 23 < ended[0] < ended[1] == STEPS

    found, expected = read_metrics(moved), read_metrics(tmp_path / "still")
    assert [line["step"] for line in found if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert len(found) == len(expected)
    for line, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(line["loss"], other["loss"], rtol=1e-5)
