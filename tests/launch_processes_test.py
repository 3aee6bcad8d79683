"""Processes that launch/local.sh and launch/tpu_worker.sh start: stand-ins for a training, signalled and failing."""

import os
import shlex
import shutil
import signal
import subprocess
import time

import pytest
from launching import LAUNCH, TRAINING, launch, recorded

# ---- local.sh --------------------------------------------------------------------------------------------------------
WORKER = """#!/usr/bin/env bash
where="$JAX_COORDINATOR_ADDRESS on '${JAX_PLATFORMS:-}' '${XLA_FLAGS:-}' with ${NPROC:-} threads"
echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $where: $*"
trap 'echo stopped by SIGTERM; exit 143' TERM
trap 'echo stopped by SIGINT; exit 130' INT
case "$WHAT" in
    end) exit 0 ;;
    fail) [ "$JAX_PROCESS_ID" != 1 ] || exit 7 ;;
esac
echo waiting
while true; do sleep 0.05; done
"""


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "worker").write_text(WORKER)
    (tmp_path / "worker").chmod(0o755)
    return tmp_path / "worker"


def local(worker, *arguments, what):
    environment = os.environ | {"WHAT": what, "XLA_FLAGS": "--a"}
    return subprocess.Popen(
        ["bash", str(LAUNCH / "local.sh"), f"python={worker}", "workdir=w", "records=r", "processes=3", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_local_processes_know_their_places(worker):
    process = local(worker, "devices=2", what="end")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = sorted(out.splitlines())
    address = lines[0].split(" at ")[1].split(" ")[0]
    assert address.startswith("127.0.0.1:")
    assert lines == [
        f"[{i}] {i} of 3 at {address} on 'cpu' '--a --xla_force_host_platform_device_count=2' with 8 threads: "
        "-m colajax.train --workdir w --config configs/cola_joint.py --config.records=r"
        for i in range(3)
    ]


def test_a_local_dry_run_prints_what_the_processes_get(worker):
    process = local(worker, "devices=2", "--config.a=(1, 2)", "--dry-run", what="end")
    out, _ = process.communicate(timeout=60)
    shown = [
        subprocess.run(shlex.split(line), capture_output=True, text=True, check=True, env={"WHAT": "end"} | os.environ)
        for line in out.splitlines()
    ]
    process = local(worker, "devices=2", "--config.a=(1, 2)", what="end")
    out, _ = process.communicate(timeout=60)

    def without_port(lines):
        return sorted(line.split(" at ")[0] + line.split(" on ", 1)[1] for line in lines)

    assert without_port(f"[{i}] {run.stdout}"[:-1] for i, run in enumerate(shown)) == without_port(out.splitlines())


@pytest.mark.parametrize("send", [os.kill, os.killpg])  # as a scheduler does, as a terminal does
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_every_local_process_once(worker, number, status, send):
    process = local(worker, what="wait")
    lines = [process.stdout.readline() for _ in range(6)]  # each has printed two
    assert sum("waiting" in line for line in lines) == 3
    send(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == status
    stopped = sorted(line for line in out.splitlines() if "stopped" in line)
    assert stopped == [f"[{i}] stopped by {number.name}" for i in range(3)]


def test_the_first_local_failure_ends_all(worker):
    process = local(worker, what="fail")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "process 1 ended with status 7" in errors
    assert "stopped" not in out
    assert errors.count("ended with status") == 3


# ---- on the workers of a TPU VM --------------------------------------------------------------------------------------
TRAINER = """#!/usr/bin/env bash
[ "$1" != -c ] || exit 1  # asked by the supervisor how far it has come
echo "on '$JAX_PLATFORMS': $*"
trap 'echo saved; exit 143' TERM
while true; do sleep 0.05; done
"""


def test_what_a_tpu_worker_is_told(desk):
    """The commands that tpu_vm.sh sends, carried out in a home folder, but for what `setup` downloads."""
    home = desk / "home"
    (home / "user" / "bin").mkdir(parents=True)
    (home / "bin").mkdir()
    uv = home / "user" / "bin" / "uv"
    uv.write_text('#!/bin/sh\n[ "$2" != find ] || echo /python3.12\n')
    (home / "bin" / "python3").write_text(f'#!/bin/sh\n[ "$2" != site ] || echo {home}/user\n')
    tree = desk / "tree"
    shutil.copytree(LAUNCH, tree / "launch")
    (tree / "launch" / "environment.sh").write_text(
        'mkdir -p .venv/bin; cp ../trainer .venv/bin/python; echo "$PYTHON $*" >made'
    )
    subprocess.run(["tar", "-czf", str(home / "colajax.tar.gz"), "-C", str(tree), "launch"], check=True)
    (home / "trainer").write_text(TRAINER)
    for file in (home / "trainer", uv, home / "bin" / "python3"):
        file.chmod(0o755)

    def tell(subcommand):
        launch(desk, "tpu_vm.sh", subcommand, "pod.txt")
        told = [command[-1] for command, _ in recorded(desk) if "ssh" in command]
        environment = os.environ | {"PATH": f"{home}/bin:/usr/bin:/bin"}
        environment.pop("JAX_PLATFORMS", None)  # of the tests
        return subprocess.run(
            told[0].removeprefix("--command="), shell=True, executable="/bin/bash", cwd=home, env=environment,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    log = home / "colajax" / "train.log"
    result = tell("setup")
    assert result.returncode == 0, result.stderr
    assert (home / "colajax" / "made").read_text() == "/python3.12 tpu\n"
    assert tell("train").returncode == 0
    pid = int((home / "colajax" / "train.pid").read_text())
    try:
        while not log.exists() or not log.read_text():
            time.sleep(0.05)
        assert log.read_text() == f"on 'tpu,cpu': {' '.join(TRAINING)}\n"
        assert os.getsid(pid) == pid  # in a session of its own: the end of ssh does not reach it
        assert tell("status").stdout.startswith("training: on 'tpu,cpu'")
        again = tell("train")
        assert (again.returncode, again.stderr) == (2, f"error: process {pid} is training here already\n")
        assert tell("stop").stdout == "saved\n"
    finally:
        if tell("status").stdout.startswith("training"):
            os.kill(pid, signal.SIGKILL)
    assert tell("status").stdout == "not training: saved\n"
