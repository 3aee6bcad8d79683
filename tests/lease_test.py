"""Two trainers of one workdir: real processes, one of them killed or frozen; machines that are only named."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny_runs
from etils import epath
from tiny_runs import ROOT, environment

from colajax.errors import UserError
from colajax.stages.vae import VAEStage
from colajax.train import lease as module
from colajax.train import loop, setup
from colajax.train.lease import FILE, Lease
from colajax.train.loop import train

HELD = """
import sys, time
from etils import epath
from colajax.train import lease as module
module.EVERY = 0.05
lease = module.Lease(epath.Path(sys.argv[1]))
lease.take()
with lease.kept():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "DEAD", 1.0)
    monkeypatch.setattr(module, "SOON", 0.05)


@pytest.fixture
def holder(tmp_path):
    """A process that holds a workdir."""
    with subprocess.Popen(
        [sys.executable, "-c", HELD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT, env=environment(1),
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def elsewhere(path: epath.Path) -> None:
    """As if its holder were of another machine, of which nothing is known but what it writes."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "another"}))


def test_a_workdir_in_which_another_trains_is_refused(holder, tmp_path, records, quick):
    config = tiny_runs.tiny_config("vae", f"records={records}")
    with pytest.raises(UserError, match=rf"lease.json: process {holder.pid} on .* is training in this workdir"):
        train(config, VAEStage, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    holder.communicate("\n")
    assert not (tmp_path / FILE).exists()
    assert train(config, VAEStage, tmp_path) == 0
    assert not (tmp_path / FILE).exists()


def test_one_that_was_killed_here_is_not_waited_for(holder, tmp_path):
    holder.kill()
    holder.wait()
    Lease(epath.Path(tmp_path)).take()
    assert json.loads((tmp_path / FILE).read_text())["process"] == os.getpid()


def test_one_that_was_killed_elsewhere_is_taken_for_dead_after_a_while(holder, tmp_path, quick, capsys):
    holder.kill()
    holder.wait()
    elsewhere(tmp_path / FILE)
    Lease(epath.Path(tmp_path)).take()
    assert f"of process {holder.pid} on another; waiting 1 s for a sign of it" in capsys.readouterr().out
    assert json.loads((tmp_path / FILE).read_text())["process"] == os.getpid()


def test_one_that_was_frozen_leaves_to_another_what_it_took(holder, tmp_path, quick):
    holder.send_signal(signal.SIGSTOP)
    Lease(epath.Path(tmp_path)).take()
    holder.send_signal(signal.SIGCONT)
    mine = Lease(epath.Path(tmp_path))
    mine.take()
    holder.communicate("\n")
    mine.check()  # it has neither renewed it nor removed it
    other = Lease(epath.Path(tmp_path))
    other.take()
    with pytest.raises(UserError, match="has taken it; this process ends"):
        mine.check()


def test_what_is_not_a_lease_is_nobodys(tmp_path):
    (tmp_path / FILE).write_text('{"host":')
    Lease(epath.Path(tmp_path)).take()


def test_it_is_renewed_while_a_run_restores_or_begins_and_left_where_that_fails(tmp_path, records, monkeypatch):
    def renewals() -> int:
        return json.loads((tmp_path / FILE).read_text())["renewals"]

    def slow(*arguments, **options):
        before, until = renewals(), time.monotonic() + 30
        while renewals() < before + 2:
            assert time.monotonic() < until
        raise UserError("no memory for that")

    monkeypatch.setattr(module, "EVERY", 0.05)
    monkeypatch.setattr(setup, "fresh_state", slow)
    with pytest.raises(UserError, match="no memory"):
        train(tiny_runs.tiny_config("vae", f"records={records}"), VAEStage, tmp_path)
    assert not (tmp_path / FILE).exists()


def test_a_run_whose_workdir_was_taken_saves_nothing(tmp_path, records, monkeypatch):
    """Before its first checkpoint another takes it."""
    class Taken(loop.StopSignals):
        def agreed(self, step):
            if step == 2:
                Lease(epath.Path(tmp_path)).take()
            return 0

    monkeypatch.setattr(loop, "StopSignals", Taken)
    with pytest.raises(UserError, match="has taken it"):
        train(tiny_runs.tiny_config("vae", f"records={records}"), VAEStage, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []
