"""The same numbers on every mesh and in any number of processes: eight simulated devices, real processes."""

import base64
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import ROOT, environment

from colajax.parallel.processes import free_port
from colajax.sampling.load import SAMPLERS

WORKER = Path(__file__).parent / "mesh_worker.py"
# Each axis alone, each with each other one, all three.
MESHES = ["8,1,1", "1,8,1", "1,1,8", "2,2,2", "1,4,2"]
# Of the other stages, and of what is written: all axes, and two of them unequal.
FEWER = ["2,2,2", "1,4,2"]
UPDATED = ["8,1,1", "1,1,8", "2,2,2"]  # in production precision, which takes longest
OPTIMISED = "2,2,2"  # compiled as production runs are; the others are quicker to compile
# (processes, devices of each, mesh, families whose text they write): parameters and heads, or the batch and parameters,
# lie across processes.
CLUSTERS = [(2, 4, "1,1,8", tuple(SAMPLERS)), (4, 2, "2,2,2", ())]


def run_worker(jobs: list[tuple], *, processes: int = 1, devices: int = 8, **compiled) -> list:
    """The results of jobs (see mesh_worker.py), as the first process has them; compiled: see tiny_runs.environment."""
    folder = Path(tempfile.mkdtemp())
    address = f"localhost:{free_port()}"
    cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)} if processes > 1 else {}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "results.json"), json.dumps(jobs)], cwd=ROOT, text=True,
            env=environment(devices, **compiled, **cluster, **({"JAX_PROCESS_ID": str(i)} if cluster else {})),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(processes)
    ]  # fmt: skip
    outputs = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * processes, outputs
    return json.loads((folder / "results.json").read_text())


def meshes_of(stage: str) -> list[str]:
    return MESHES if stage == "joint" else FEWER


@functools.cache
def results(task: str, *arguments) -> dict:
    """{mesh: result} of one device and of eight in every mesh of the task, in one process."""
    meshes = ["one", *(FEWER if task == "text" else meshes_of(arguments[0]))]
    return dict(zip(meshes, run_worker([(task, mesh, *arguments) for mesh in meshes]), strict=True))


@functools.cache
def updates() -> dict:
    """{mesh: the first update} in production precision, with gradients reduced in float32; and "bfloat16": on 2,2,2,
    reduced in bfloat16."""
    found = run_worker([("update", OPTIMISED, "float32")], optimised=True)
    others = ["one", *(mesh for mesh in UPDATED if mesh != OPTIMISED)]
    jobs = [*(("update", mesh, "float32") for mesh in others), ("update", "2,2,2", "bfloat16")]
    return dict(zip([OPTIMISED, *others, "bfloat16"], found + run_worker(jobs), strict=True))


def assert_same_gradients(found: dict, expected: dict):
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    ours, theirs = np.array(found["gradients"]), np.array(expected["gradients"])
    assert np.linalg.norm(theirs) > 0.1
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("stage", "mesh"), [(stage, mesh) for stage in ("vae", "joint", "ar", "llada") for mesh in meshes_of(stage)]
)
def test_every_mesh_gives_the_loss_and_the_gradients_of_one_device(stage, mesh):
    assert_same_gradients(results("gradients", stage)[mesh], results("gradients", stage)["one"])


@pytest.mark.parametrize("name", [*UPDATED, "bfloat16"])
def test_an_update_in_production_precision_is_near_that_of_one_device(name):
    """train_step itself, bfloat16, remat dots."""
    found, expected = (np.frombuffer(base64.b64decode(updates()[which]), np.float32) for which in (name, "one"))
    assert np.linalg.norm(expected) > 0.1
    assert 0 < np.linalg.norm(found - expected) <= 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize(("stage", "mesh"), [(stage, mesh) for stage in SAMPLERS for mesh in FEWER])
def test_every_mesh_writes_the_same_text(stage, mesh):
    text = results("text", stage)
    assert {len(tokens) for tokens in text["one"]} == {10}
    assert text[mesh] == text["one"]


@pytest.mark.parametrize(("processes", "devices", "mesh", "families"), CLUSTERS, ids=["2-4-1,1,8", "4-2-2,2,2"])
def test_processes_give_the_same_numbers_and_the_same_text(processes, devices, mesh, families):
    jobs = [("gradients", mesh, "joint"), *(("text", mesh, stage) for stage in families)]
    gradients, *texts = run_worker(jobs, processes=processes, devices=devices)
    assert_same_gradients(gradients, results("gradients", "joint")["one"])
    for stage, text in zip(families, texts, strict=True):
        assert text == results("text", stage)["one"]


def test_what_the_loss_reads_depends_on_seed_step_and_sample_alone(records):
    """Rows, noise, times and masks of 50 updates, by digest: 1, 2, 4, 8 devices; 1, 2, 4 processes; 1, 2, 4 parts.
    Compiled without XLA's fusions: in them (and with tiny_runs.QUICK_FLAGS) the last bit of a normal draw may differ
    from program to program."""

    def digests(*runs: tuple, **where) -> list[str]:
        jobs = [("hashes", mesh, "joint", str(records), parts, *seed) for mesh, parts, *seed in runs]
        return run_worker(jobs, quick="", **where)

    of_one, others = [("one", 1), ("one", 2), ("one", 4)], [("2,1,1", 2), ("1,4,1", 4), ("2,2,2", 1), ("8,1,1", 2)]
    *found, other = digests(*of_one, *others, ("one", 1, 67))
    found += digests(("2,1,1", 1), ("2,1,1", 4), processes=2, devices=1)
    found += digests(("2,2,1", 1), processes=4, devices=1)
    assert len(found) == 10
    assert set(found) == {found[0]}
    assert other != found[0]


def test_what_masked_diffusion_reads_does_too(records):
    """Rates, masks and the cuts of whole batches, which draw nothing that the test before this one has not in its
    processes."""
    runs = [("one", 1, 66), ("one", 4, 66), ("2,2,2", 1, 66), ("8,1,1", 2, 66), ("one", 1, 67)]
    *found, other = run_worker([("hashes", mesh, "llada", str(records), parts, seed) for mesh, parts, seed in runs])
    assert set(found) == {found[0]}
    assert other != found[0]
