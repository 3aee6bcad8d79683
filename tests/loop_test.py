"""Trainings that blow up: what is kept of them is finite, and named; how far the host runs ahead of its devices."""

import errno
import json
import threading
import time

import jax
import numpy as np
import pytest
import tiny_runs
from etils import epath

from colajax.data.loader import Loader
from colajax.errors import TryAgain, UserError
from colajax.stages.vae import VAEStage
from colajax.train import behind, checkpoint, reporter, updates
from colajax.train.checkpoint import latest_step
from colajax.train.loop import train
from colajax.train.stored import open_arrays

NEVER = 1000
ABSURD = ("optimizer.peak=1e30", "optimizer.clip=1e30", "optimizer.warmup_steps=2")


def blown_up(workdir, records, *overrides: str) -> str:
    """The message with which a training ends whose learning rate is absurd from the third step on."""
    given = (*ABSURD, f"eval_every={NEVER}", *overrides)
    with pytest.raises(UserError) as error:
        train(tiny_runs.tiny_config("vae", f"records={records}", *given), VAEStage, workdir)
    return str(error.value)


def assert_finite(workdir, steps: set[int]) -> None:
    folder = workdir / "checkpoints"
    assert {int(path.name) for path in folder.iterdir() if path.name.isdecimal()} == steps
    for step in steps:
        for part in ("params", "opt_state"):
            arrays = jax.tree.leaves(open_arrays(workdir, step, part=part)[1], is_leaf=lambda x: hasattr(x, "read"))
            assert arrays
            assert all(np.isfinite(np.asarray(array)).all() for array in arrays)


@pytest.mark.parametrize(
    ("log_every", "checkpoint_every"), [(50, 1), (1, 1), (50, 100)], ids=["save", "line", "last step"]
)
def test_nothing_that_is_not_finite_is_saved(records, tmp_path, log_every, checkpoint_every):
    workdir = epath.Path(tmp_path / "run")
    said = blown_up(workdir, records, f"log_every={log_every}", f"checkpoint_every={checkpoint_every}", "keep_every=1")
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()}
    assert_finite(workdir, kept)
    if checkpoint_every == 1:
        assert kept == set(range(1, max(kept) + 1))
        assert f"; the last checkpoint is of step {max(kept)}; " in said
    else:
        assert not kept
        assert "; there is no checkpoint; " in said
    assert "10 updates in a row were not sound; " in said
    text = (workdir / "metrics.jsonl").read_text() if (workdir / "metrics.jsonl").exists() else ""
    assert "NaN" not in text
    assert "Infinity" not in text
    assert [json.loads(line)["step"] for line in text.splitlines()] == list(range(1, text.count("\n") + 1))


def test_nor_when_it_is_stopped_between_two_lines(records, tmp_path, monkeypatch):
    tiny_runs.stop_after(monkeypatch, 9)
    workdir = epath.Path(tmp_path / "run")
    given = (*ABSURD, f"eval_every={NEVER}", "log_every=50", f"checkpoint_every={NEVER}")
    assert train(tiny_runs.tiny_config("vae", f"records={records}", *given), VAEStage, workdir) == 128 + 15
    assert_finite(workdir, {2})  # what came after was not applied


def test_nor_is_a_state_that_became_infinite_by_a_sound_gradient(records, tmp_path):
    workdir = epath.Path(tmp_path / "run")
    said = blown_up(workdir, records, "optimizer.lr_ratio=(('.*', 1e30),)", "checkpoint_every=1")
    assert "parameters or optimizer hold NaN or infinity at step 2, which was not saved; the last checkpoint is" in said
    assert_finite(workdir, {1})


def test_the_host_is_at_most_two_updates_ahead(records, tmp_path, monkeypatch):
    begun, waited, ahead = [], [], []
    make, get = updates.make_train_step, jax.device_get

    def make_counted(*args, **kwargs):
        train_step = make(*args, **kwargs)

        def counted(*arguments):
            ahead.append(len(begun) - len(waited))
            state, means = train_step(*arguments)
            begun.append(means["applied"])
            return state, means

        return counted

    def wait(tree):
        if isinstance(tree, dict) and "applied" in tree:
            waited.append(tree["applied"])
        return get(tree)

    monkeypatch.setattr(updates, "make_train_step", make_counted)
    monkeypatch.setattr(jax, "device_get", wait)
    given = (f"records={records}", "log_every=50", f"eval_every={NEVER}", f"checkpoint_every={NEVER}")
    assert train(tiny_runs.tiny_config("vae", *given), VAEStage, tmp_path / "run") == 0
    assert max(ahead) == updates.AHEAD == 2
    assert len(waited) == len(begun) == 12
    assert all(mine is theirs for mine, theirs in zip(waited, begun, strict=True))


def test_a_log_that_cannot_be_written_costs_no_step(records, tmp_path, monkeypatch, capsys):
    """The disk is full at the first three times, and has room at the end: the log is then as if nothing had been."""
    refusals, write = [3], behind.write_whole

    def full(path, content):
        if refusals[0]:
            refusals[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(behind, "write_whole", full)
    monkeypatch.setattr(behind, "EVERY", 0.01)
    assert train(tiny_runs.tiny_config("vae", f"records={records}"), VAEStage, tmp_path / "run") == 0
    assert "No space left on device; the run goes on" in capsys.readouterr().err
    _check_logs(tmp_path / "run")


def test_a_log_that_hangs_costs_no_step(records, tmp_path, monkeypatch, capsys):
    """As on a disk of a network whose server is away, from before the first save until after the last: checkpoints wait
    for it, as long as is worth it."""
    hanging, trained, write = threading.Event(), [], behind.write_whole

    def hang(path, content):
        hanging.wait()
        write(path, content)

    class Late(behind.Behind):
        def close(self):
            trained.extend(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
            hanging.set()
            super().close()

    monkeypatch.setattr(behind, "write_whole", hang)
    monkeypatch.setattr(behind, "PATIENCE", 0.5)
    monkeypatch.setattr(reporter, "Behind", Late)
    assert train(tiny_runs.tiny_config("vae", f"records={records}"), VAEStage, tmp_path / "run") == 0
    assert {"8", "12"} <= set(trained)
    assert "not written" not in capsys.readouterr().err
    _check_logs(tmp_path / "run")


def _check_logs(workdir) -> None:
    lines = tiny_runs.read_metrics(workdir)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    events = [json.loads(line)["event"] for line in (workdir / "timeline.jsonl").read_text().splitlines()]
    assert events[0] == "start"
    assert events.count("save") == 3


def test_a_checkpoint_has_no_name_before_the_log_is_there(records, tmp_path, monkeypatch):
    """Or a run that is killed between the two would have lost lines."""
    lines_at, is_whole = {}, checkpoint.write_digests

    def watched(folder):
        last = tiny_runs.read_metrics(tmp_path / "run")[-1]["step"]
        lines_at[int(folder.name.partition(".")[0])] = last
        is_whole(folder)

    def slow(path, content, write=behind.write_whole):
        time.sleep(0.3)
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_digests", watched)
    monkeypatch.setattr(behind, "write_whole", slow)
    assert train(tiny_runs.tiny_config("vae", f"records={records}"), VAEStage, tmp_path / "run") == 0
    assert len(lines_at) == 3
    assert all(last >= step for step, last in lines_at.items()), lines_at


@pytest.mark.parametrize("bad", [0, 9])
def test_data_that_cannot_be_read_ends_a_run_that_has_saved(records, tmp_path, monkeypatch, bad):
    """Batch 9 is read ahead of its turn; before batch 0 there is nothing to save."""
    config, workdir, batch = tiny_runs.tiny_config("vae", f"records={records}"), tmp_path / "run", Loader.batch

    def damaged(self, step, rows=None):
        if step == bad and self.records.split == "train":
            raise TryAgain("row 5 of train cannot be read")
        return batch(self, step, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", damaged)
        with pytest.raises(TryAgain, match="row 5"):
            train(config, VAEStage, workdir)
    saved = latest_step(workdir)
    assert saved is None if bad == 0 else 1 <= saved <= bad
    assert train(config, VAEStage, workdir) == 0
    lines = tiny_runs.read_metrics(workdir)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
