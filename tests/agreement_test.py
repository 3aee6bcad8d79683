"""Processes that do not agree when they start: two real ones, which end together, each with the same line."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import ROOT, environment

from colajax.parallel.processes import free_port
from colajax.train import provenance
from colajax.train.fingerprint import fingerprint
from colajax.train.provenance import commit, versions

# Runs the tasks in both processes; each writes the errors that it met, a list of lines.
WORKER = """
import errno, json, sys
import jax
from colajax.errors import TryAgain, UserError
from colajax.parallel.agreement import check_agreement, from_first, share_errors
from colajax.parallel.processes import join

join()
mine = jax.process_index()

def fail_in_the_second():
    if mine == 1:
        raise UserError("records: row 3 is damaged")
    return "result"

def refused_in_the_first():
    if mine == 0:
        open("/nowhere/file")
    return "result"

def full_in_the_first():
    if mine == 0:
        raise OSError(errno.ENOSPC, "No space left on device", "/run/config.json")

def bug_in_the_second():
    if mine == 1:
        {}["missing"]
    return "result"

def fail_alike():
    raise UserError("config.log_every is 0")

def error_of(call):
    try:
        return call()
    except TryAgain as error:
        return f"again: {error}"
    except UserError as error:
        return f"error: {error}"
    except KeyError as error:
        return f"a bug: {error}"

print(json.dumps([
    error_of(lambda: share_errors(fail_in_the_second)),
    error_of(lambda: share_errors(lambda: mine)),
    error_of(lambda: share_errors(fail_alike)),
    error_of(lambda: check_agreement({"the run's step": (20, None)[mine], "jax": "1"})),
    error_of(lambda: check_agreement({"the run's step": 20, "jax": "1"})),
    error_of(lambda: share_errors(refused_in_the_first)),
    error_of(lambda: share_errors(bug_in_the_second)),
    error_of(lambda: from_first(lambda: {"mine": mine})),
    error_of(lambda: from_first(refused_in_the_first)),
    error_of(lambda: share_errors(full_in_the_first)),
]))
"""


def two_processes(*commands: list[str]) -> list[tuple[int, str, str]]:
    """Status, output and errors of each."""
    address = f"localhost:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(1, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i)),
        )
        for i, command in enumerate(commands)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.fixture(scope="module")
def met():
    """What each of two processes met, two lists of the same tasks."""
    found = two_processes(["-c", WORKER], ["-c", WORKER])
    assert [status for status, *_ in found] == [0, 0], found
    return [json.loads(out.splitlines()[-1]) for _, out, _ in found]


def test_an_error_of_one_is_raised_in_all(met):
    assert met[0][0] == met[1][0] == "error: process 1: records: row 3 is damaged"
    assert [met[0][1], met[1][1]] == [0, 1]  # without an error each has its own result
    assert met[0][2] == met[1][2] == "error: config.log_every is 0"  # of all alike


def test_a_mistake_in_the_command_of_one_ends_all(tmp_path):
    command = ["-m", "colajax.train", "--config", "configs/cola_vae.py:quickstart", "--workdir", str(tmp_path / "run")]
    first, second = two_processes(command, [*command, "--config.log_every=often"])
    assert first[0] == second[0] == 2
    assert first[2].startswith("error: process 1: ")
    assert first[2] == second[2]
    assert "log_every" in first[2]
    assert first[2].count("\n") == 1


def test_what_is_refused_in_one_and_a_bug_of_one_end_all(met):
    assert met[0][5] == met[1][5] == "error: process 0: /nowhere/file: No such file or directory"
    assert met[0][6] == "error: process 1: KeyError: 'missing'"
    assert met[1][6] == "a bug: 'missing'"
    assert met[0][9] == met[1][9] == "again: process 0: /run/config.json: No space left on device"


def test_what_the_first_finds_is_so_in_all(met):
    assert met[0][7] == met[1][7] == {"mine": 0}
    assert met[0][8] == met[1][8] == met[0][5]


def test_what_differs_is_named_in_all(met):
    assert met[0][3] == met[1][3]
    assert "error: the run's step is None in process 1 and 20 in process 0" in met[0][3]
    assert met[0][4] is met[1][4] is None


def test_a_fingerprint_tells_parameters_apart():
    rng = np.random.default_rng(0)
    tree = {"a": rng.standard_normal((4, 6), np.float32), "b": {"c": rng.standard_normal(5).astype(np.float32)}}
    found = fingerprint(tree)
    assert found == fingerprint(jax.tree.map(jnp.asarray, tree))
    swapped = {**tree, "a": tree["a"][::-1].copy()}
    nudged = {**tree, "a": np.where(np.arange(24).reshape(4, 6) == 7, np.nextafter(tree["a"], 9), tree["a"])}
    renamed = {"z": tree["a"], "b": tree["b"]}
    assert len({found, *map(fingerprint, (swapped, nudged, renamed))}) == 4


def test_a_program_says_what_it_is():
    assert versions()["jax"] == jax.__version__
    assert versions()["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if said.returncode == 0:
        assert commit().removesuffix("+") == said.stdout.strip()


def test_an_installation_inside_another_repository_has_not_its_commit(tmp_path, monkeypatch):
    package = tmp_path / ".venv" / "colajax"
    package.mkdir(parents=True)
    commit_of = ["-c", "user.name=n", "-c", "user.email=n@n", "commit", "--quiet", "--allow-empty", "--message=another"]
    for command in (["init", "--quiet"], commit_of):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    found = []
    for archived in (None, "$Format:%H$\n", "0123abc\n"):
        if archived:
            (package / "commit.txt").write_text(archived)
        found.append(commit())
    assert found == ["unknown", "unknown", "0123abc"]
