"""launch/environment.sh, with stand-ins for Python and pip: what it installs, when, and what it refuses."""

import os
import shutil
import subprocess

import pytest
from tiny_runs import ROOT

# Says that it is Python $VERSION; makes an environment of itself; notes what pip is given.
STAND_IN = """#!/usr/bin/env bash
VERSION=3.12
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo "${@:3}" >>pip.log ;;
    "-c import sys; print"*) echo "$VERSION" ;;
    *) [[ "$2" == *"!= '$VERSION')" ]] ;;
esac
"""


@pytest.fixture
def environment(tmp_path):
    """environment(version, **variables): (status, what it said, pip's new arguments)"""
    (tmp_path / "launch" / "constraints").mkdir(parents=True)
    shutil.copy(ROOT / "launch/environment.sh", tmp_path / "launch")
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "launch/constraints/python3.12.txt").write_text("jax==1\n")
    log = tmp_path / "pip.log"

    def run(version, extra="test", **variables):
        python = tmp_path / f"python{version}"
        python.write_text(STAND_IN.replace("VERSION=3.12", f"VERSION={version}"))
        python.chmod(0o755)
        log.write_text("")
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "VENV")}
        done = subprocess.run(
            ["bash", "launch/environment.sh", extra], cwd=tmp_path, capture_output=True, text=True, check=False,
            env=environment | {"PYTHON": str(python)} | variables,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr, log.read_text().splitlines()

    return run


def test_installs_the_tested_versions_once_and_again_when_they_change(environment, tmp_path):
    constraints = "--constraint launch/constraints/python3.12.txt"
    constrained = f"install --quiet --disable-pip-version-check {constraints} -e .[test]"
    status, _, installed = environment("3.12")
    assert (status, installed) == (0, [constrained])
    assert environment("3.12") == (0, "", [])
    stamp = tmp_path / ".venv/.installed-test"
    for changed in ("launch/constraints/python3.12.txt", "setup.py"):
        later = stamp.stat().st_mtime + 10
        os.utime(tmp_path / changed, (later, later))
        assert environment("3.12")[2] == [constrained], changed
        os.utime(stamp, (later, later))
        assert environment("3.12")[2] == [], changed
    assert environment("3.12", extra="tpu")[2] == [constrained.replace("test", "tpu")]


def test_a_python_without_tested_versions_is_told(environment):
    status, said, installed = environment("3.15")
    assert status == 0
    assert "no launch/constraints/python3.15.txt" in said
    assert installed == ["install --quiet --disable-pip-version-check -e .[test]"]


def test_other_pythons_have_folders_of_their_own(environment, tmp_path):
    assert environment("3.12")[0] == 0
    status, said, installed = environment("3.13")
    assert (status, said.count("\n"), installed) == (2, 1, [])
    assert "of another Python" in said
    assert environment("3.13", VENV=".venv-3.13")[0] == 0
    assert (tmp_path / ".venv-3.13/bin/python").exists()


@pytest.mark.parametrize("version", ["3.10", "2.7", "3.9"])
def test_an_old_python_is_refused(environment, version):
    status, said, installed = environment(version)
    assert (status, said.count("\n"), installed) == (2, 1, [])
    assert "older than Python 3.11" in said


def test_no_python_at_all(environment):
    status, said, _ = environment("3.12", PYTHON="/nothing/python")
    assert said.count("\n") == 1
    assert status == 2
    assert said.endswith("error: /nothing/python does not run; set PYTHON to Python 3.11 or newer\n")
