"""tools/chaos.py: a real training, killed in a save; and stand-ins for trainers that do not bear it, of which it has to
say so."""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from tiny_runs import ROOT, environment

from colajax.chaos import trial as module
from colajax.chaos.calls import ONCE, calls_under
from colajax.chaos.circumstances import damage_rows
from colajax.chaos.faults import Fault, removed
from colajax.chaos.subject import Subject
from colajax.chaos.trainer import Trainer
from colajax.chaos.trial import LATE, Reference, References, table_of, trials
from colajax.data.records import Records
from colajax.errors import UserError

# Counts to 30, a file a step; begins at the last one that has all its digits. "forgets": what was before a kill is not
# in its result. "stops": it does not go on after one. "hangs": it goes on, and does not end.
TRAINER = """
import sys, time
from pathlib import Path
how, workdir = sys.argv[1], Path(sys.argv[sys.argv.index("--workdir") + 1])
folder = workdir / "checkpoints"
again = folder.exists()
folder.mkdir(parents=True, exist_ok=True)
step = max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0)
if again:
    print(f"going on from step {step}", flush=True)
if again and how == "stops":
    sys.exit(2)
lines = [] if how == "forgets" else [str(n) for n in range(1, step + 1)]
while step < 30:
    time.sleep(0.01)
    step += 1
    lines.append(str(step))
    print(f"step {step}/30", flush=True)
    part = folder / f"{step}.tmp"
    part.mkdir(exist_ok=True)
    (part / "state").write_text("x" * 50)
    time.sleep(0.01)
    part.rename(folder / str(step))
(workdir / "result").write_text("\\n".join(lines))
while again and how == "hangs":
    time.sleep(1)
"""


@pytest.fixture(autouse=True)
def no_waiting(tmp_path_factory, monkeypatch):
    """The supervisor waits ten seconds before it starts a training again: not here."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.05\n")
    (folder / "sleep").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def subject(tmp_path, how: str) -> Subject:
    (tmp_path / "trainer.py").write_text(TRAINER)
    command = (sys.executable, "-S", str(tmp_path / "trainer.py"), how, "--workdir", "{workdir}")
    return Subject(command, "checkpoints", "result")


@pytest.mark.parametrize(
    ("how", "end"), [("bears it", "same"), ("forgets", "another end"), ("stops", "status 2"), ("hangs", "hang")]
)
def test_what_becomes_of_a_trainer_is_said(tmp_path, monkeypatch, how, end):
    monkeypatch.setattr(module, "PATIENCE", 2.0)

    def moment(rng, low, high):
        """Not too early on a machine that is busy: what is forgotten must be there."""
        while high != 0.1 and not list(tmp_path.glob("kill-*/checkpoints/5")):
            time.sleep(0.005)
        return 0.01

    monkeypatch.setattr(random.Random, "uniform", moment)
    tried = subject(tmp_path, how)
    references = References(tmp_path)
    known = Reference(0.5, references.of(tried).digest)
    monkeypatch.setattr(references, "of", lambda subject: known)
    times = {"kill": 1, "save": 1}
    found = [trial for trial in trials(times, 0, tried, references, tmp_path) if trial["end"] != LATE]
    assert list(trials(times, 0, tried, references, tmp_path, known=found)) == []
    assert [trial["end"] for trial in found] == [end] * 2, found
    rows = table_of(found).splitlines()
    assert rows[2].startswith(f"| kill | 1 | {'1 (100%)' if end == 'same' else '0 (0%)'} |")
    assert rows[2].endswith(" - |" if end == "same" else f"{end}: 1 |")
    kept = {path.name for path in tmp_path.iterdir() if path.name.startswith(("kill", "save"))}
    assert len(kept) == (0 if end == "same" else 4)  # to be looked at: folder and log of each


def test_an_interruption_ends_all_that_runs(tmp_path, monkeypatch):
    def interrupted(trainer, rng, seconds):
        assert trainer.wait_for(lambda: list(tmp_path.glob("kill-0/checkpoints/5")), 60)
        raise KeyboardInterrupt

    monkeypatch.setitem(module.FAULTS, "save", Fault(interrupted, 1))
    tried, references = subject(tmp_path, "hangs"), References(tmp_path, jobs=2)
    with pytest.raises(KeyboardInterrupt):
        list(trials({"kill": 1, "save": 1}, 0, tried, references, tmp_path, jobs=2))
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "trainer.py")], capture_output=True, text=True, check=False)
    assert left.stdout == ""


def test_a_command_that_ends_differently_by_itself_is_refused(tmp_path):
    (tmp_path / "t.py").write_text(
        "import os, sys, pathlib\nw = pathlib.Path(sys.argv[2])\nw.mkdir()\n(w / 'result').write_text(str(os.getpid()))"
    )
    command = (sys.executable, "-S", str(tmp_path / "t.py"), "--workdir", "{workdir}")
    with pytest.raises(UserError, match="came to two ends"):
        References(tmp_path).of(Subject(command, "checkpoints", "result"))


def test_each_process_has_a_supervisor_of_its_own(tmp_path):
    """The second of two is stopped, and started again."""
    (tmp_path / "t.py").write_text(
        "import os, pathlib, sys, time\nw = pathlib.Path(sys.argv[2])\nw.mkdir(exist_ok=True)\n"
        "(w / os.environ['JAX_PROCESS_ID']).open('a').write('started ')\nwhile not (w / 'go').exists(): time.sleep(.01)"
    )
    command = (sys.executable, "-S", str(tmp_path / "t.py"), "--workdir", "{workdir}")
    workdir = epath.Path(tmp_path) / "run"
    trainer = Trainer(command, workdir, tmp_path / "log", "checkpoints", processes=2)

    def started(index: int) -> int:
        file = workdir / str(index)
        return file.read_text().count("started") if file.exists() else 0

    try:
        assert trainer.wait_for(lambda: started(0) and started(1), 60)
        assert trainer.send(signal.SIGTERM, 1)
        assert trainer.wait_for(lambda: trainer.one_ended, 60)
        assert trainer.status is None
        trainer.restarts_stopped = True
        assert trainer.wait_for(lambda: started(1) == 2, 60)
        (workdir / "go").touch()
        trainer.wait_for(lambda: False, 60)
        assert (trainer.status, started(0)) == (0, 1)
    finally:
        trainer.end()


def test_what_is_before_a_command_is_of_its_first_start_alone(tmp_path):
    (tmp_path / "t.py").write_text(
        "import os, pathlib, sys, time\nw = pathlib.Path(sys.argv[2])\nw.mkdir(exist_ok=True)\n"
        "nicer = os.nice(0) - int(sys.argv[3])\n"
        "(w / 'result').open('a').write(f'{nicer} ')\nwhile nicer: time.sleep(.01)"
    )
    prefix = ("sh", "-c", ONCE, str(tmp_path / "began"), "nice", "-n", "1", "--")
    command = (sys.executable, "-S", str(tmp_path / "t.py"), "--workdir", "{workdir}", str(os.nice(0)))
    trainer = Subject(command, "checkpoints", "result", prefix=prefix).start(tmp_path, "run")
    try:
        assert trainer.wait_for(lambda: (trainer.workdir / "result").exists(), 60)
        assert trainer.send(signal.SIGKILL)
        trainer.wait_for(lambda: False, 60)
        assert (trainer.status, trainer.restarts) == (0, 1)
        assert (trainer.workdir / "result").read_text() == "1 0 "
    finally:
        trainer.end()


def test_a_checkpoint_that_has_just_begun_is_not_the_one_to_damage(tmp_path):
    """Of a trainer that gives it its name at once."""
    for step in ("1", "2"):
        (tmp_path / step).mkdir()
    (tmp_path / "1" / "state").write_text("x")
    killed = types.SimpleNamespace(
        wait_for=lambda holds, seconds: holds(), saved=lambda: [tmp_path / "1", tmp_path / "1", tmp_path / "2"],
        saving=lambda: False, send=lambda number, index: True, count=1, checkpoints=tmp_path,
    )  # fmt: skip
    assert removed(killed, random.Random(0), 1.0) == "remove 1/state"
    assert not (tmp_path / "1" / "state").exists()


def test_calls_are_counted_by_thread():
    """What strace 6.1 writes."""
    lines = """\
7 mkdir("/w", 0777) = 0
7 mkdir("/w/checkpoints/1", 0777) = 0
8 write(4</w/checkpoints/1/f>, ""..., 10 <unfinished ...>
7 write(1</dev/null>, ""..., 10) = 10
7 rename("/w/checkpoints/1", "/w/checkpoints/2") = -1 ENOENT (No such file or directory)
8 <... write resumed>) = 10
8 write(4</w/checkpoints/1/f>, ""..., 10) = 10
7 write(5</w/checkpoints/2/f>, ""..., 10) = 10
8 +++ exited with 0 +++
7 rename("/w/checkpoints", "/w/other") = 0""".splitlines()
    assert calls_under("/w/checkpoints", lines) == {"mkdir": [2], "write": [1, 2], "rename": [1]}


def test_damaged_rows_and_the_records_that_are_like_them(records, tmp_path):
    """What reads the damaged ones and skips finds what one finds in the mended ones, by array_record itself."""
    bad = damage_rows(records, tmp_path / "damaged", tmp_path / "mended", random.Random(0))
    found, mended, before = (
        Records.open(folder, "train", how)
        for folder, how in ((tmp_path / "damaged", "skip"), (tmp_path / "mended", "stop"), (records, "stop"))
    )
    rows = range(len(before))
    np.testing.assert_array_equal(found.read(rows), mended.read(rows))
    differs = (mended.read(rows) != before.read(rows)).any(1)
    assert list(np.flatnonzero(differs)) == bad


def test_a_training_comes_to_the_same_end(tmp_path, monkeypatch, capsys):
    for name, value in environment(1, PYTHONPATH=str(ROOT)).items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["tools/chaos.py", "--out", str(out), "--faults", "save"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "chaos.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    found = [json.loads(line) for line in (Path(out) / "trials.jsonl").read_text().splitlines()]
    assert [(trial["fault"], trial["end"]) for trial in found] == [("save", "same")]
    assert found[0]["lost_steps"] <= 20  # a checkpoint is of every tenth, and the one that was cut is not there
    assert "| save | 1 | 1 (100%) |" in said
