"""launch/supervise.sh over a stand-in for a training, which ends as a list says, and a `sleep` that writes down how
long it was to be."""

import os
import signal
import subprocess
import time

import pytest
from launching import LAUNCH

# Called as the training: takes the first line of `plan`, "STATUS STEP": saves the checkpoint of STEP, ends with STATUS.
# Called by the supervisor: tells the last one.
PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then cat step; exit; fi
read -r status step <plan
sed -i 1d plan
echo "$*" >>started
[ -z "$step" ] || echo "$step" >step
if [ "$status" = freeze ]; then
    echo 1 >"$COLAJAX_ALIVE"
    touch -d "-40 seconds" "$COLAJAX_ALIVE"
    kill -STOP $$
fi
if [ "$status" = wait ]; then
    trap 'echo saved >>started; exit 143' TERM
    while true; do /bin/sleep 0.05; done
fi
exit "$status"
"""
SLEEP = '#!/usr/bin/env bash\n[ "$1" = 0.2 ] && exec /bin/sleep 0.02\necho "$1" >>slept\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bin").mkdir()
    for name, text in (("python", PYTHON), ("sleep", SLEEP)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "step").write_text("-1\n")
    return tmp_path


def supervised(folder, *ends: str) -> subprocess.Popen:
    (folder / "plan").write_text("\n".join((*ends, "99")) + "\n")
    command = ["srun", "--wait=60", "python", "-m", "colajax.train", "--workdir", "run", "--config", "a file"]
    (folder / "bin" / "srun").write_text('#!/usr/bin/env bash\nshift; exec "$@"\n')
    (folder / "bin" / "srun").chmod(0o755)
    return subprocess.Popen(
        ["bash", str(LAUNCH / "supervise.sh"), *command], cwd=folder, text=True, stderr=subprocess.PIPE,
        env=os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}, start_new_session=True,
    )  # fmt: skip


def slept(folder) -> list[int]:
    file = folder / "slept"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("status", [0, 2, 130, 143])
def test_an_end_that_no_restart_mends_is_passed_on(folder, status):
    process = supervised(folder, str(status))
    assert (process.wait(), process.stderr.read()) == (status, "")
    assert (folder / "started").read_text() == "-m colajax.train --workdir run --config a file\n"


def test_it_runs_again_as_long_as_there_is_progress(folder):
    """Seven crashes, and a wait that grows while no checkpoint comes, and is short again once one has."""
    process = supervised(folder, "1", "137", "134 4", "1 4", "1", "1", "1 8", "0 12")
    assert process.wait() == 0
    said = process.stderr.read().splitlines()
    assert slept(folder) == [10, 20, 10, 10, 20, 40, 10]
    assert len((folder / "started").read_text().splitlines()) == 8
    assert said[0] == "supervise.sh: ended with status 1, without a checkpoint; again in 10 s"
    assert said[2] == "supervise.sh: ended with status 134, with a checkpoint of step 4; again in 10 s"


def test_it_gives_up_where_there_is_none(folder):
    process = supervised(folder, "1 4", *["134"] * 9)
    assert process.wait() == 134
    *_, last = process.stderr.read().splitlines()
    assert last == (
        "error: supervise.sh: ended with status 134, with a checkpoint of step 4: five times without a later one"
    )
    assert slept(folder) == [10, 10, 20, 40, 80]


def test_time_may_mend_what_ends_with_status_75(folder):
    process = supervised(folder, *["75"] * 7, "134", "2 4")
    assert process.wait() == 2
    assert slept(folder) == [10, 20, 40, 80, 160, 300, 300, 300]


def test_one_that_is_frozen_is_killed(folder):
    process = supervised(folder, "freeze", "0")
    assert process.wait(timeout=60) == 0
    first, *_, last = process.stderr.read().splitlines()  # between them bash says whom somebody killed
    assert first == "supervise.sh: it does not move: killed"
    assert last == "supervise.sh: ended with status 137, without a checkpoint; again in 10 s"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_for_the_training(folder, sent):
    (folder / "bin" / "python").write_text(PYTHON.replace("143' TERM", f"{128 + sent}' {sent.name[3:]}"))
    process = supervised(folder, "wait")
    while not (folder / "started").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, sent)  # as a terminal does: the training has a group of its own, and gets it once
    assert process.wait() == 128 + sent
    assert (folder / "started").read_text().splitlines()[1:] == ["saved"]


def test_a_command_without_a_workdir_is_refused():
    result = subprocess.run(
        ["bash", str(LAUNCH / "supervise.sh"), "true"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (
        2, "error: supervise.sh: expected a command with --workdir DIR in it\n",
    )  # fmt: skip
