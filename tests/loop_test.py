"""Trainings that blow up: what is kept of them is finite, and named; how far the host runs ahead of its devices."""

import json
import re

import jax
import numpy as np
import pytest
import tiny_runs
from etils import epath

from colajax.errors import UserError
from colajax.stages.vae import VAEStage
from colajax.train import loop
from colajax.train.loop import train
from colajax.train.stored import open_arrays

NEVER = 1000


def blown_up(workdir, records, *overrides: str) -> str:
    """The message with which a training ends whose learning rate is absurd from the third step on."""
    absurd = [f"optimizer.{value}" for value in ("peak=1e30", "clip=1e30", "warmup_steps=2")]
    given = (*absurd, f"eval_every={NEVER}", *overrides)
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
    assert re.search(r"(hold NaN or infinity|is (nan|inf)) at step \d+", said)
    text = (workdir / "metrics.jsonl").read_text() if (workdir / "metrics.jsonl").exists() else ""
    assert "NaN" not in text
    assert "Infinity" not in text
    assert [json.loads(line)["step"] for line in text.splitlines()] == list(range(1, text.count("\n") + 1))


def test_nor_when_it_is_stopped_between_two_lines(records, tmp_path, monkeypatch):
    class Stopped(loop.StopSignals):
        def agreed(self, step):
            return 15 if step == 9 else 0

    monkeypatch.setattr(loop, "StopSignals", Stopped)
    workdir = epath.Path(tmp_path / "run")
    said = blown_up(workdir, records, "log_every=50", f"checkpoint_every={NEVER}")
    assert "parameters or optimizer hold NaN or infinity at step 9, which was not saved; there is no checkpoint" in said
    assert_finite(workdir, set())


def test_the_host_is_at_most_two_updates_ahead(records, tmp_path, monkeypatch):
    begun, waited, ahead = [], [], []
    make, wait = loop.make_train_step, jax.block_until_ready

    def make_counted(*args, **kwargs):
        train_step = make(*args, **kwargs)

        def counted(*arguments):
            ahead.append(len(begun) - len(waited))
            state, means = train_step(*arguments)
            begun.append(means)
            return state, means

        return counted

    monkeypatch.setattr(loop, "make_train_step", make_counted)
    monkeypatch.setattr(jax, "block_until_ready", lambda means: waited.append(means) or wait(means))
    given = (f"records={records}", "log_every=50", f"eval_every={NEVER}", f"checkpoint_every={NEVER}")
    assert train(tiny_runs.tiny_config("vae", *given), VAEStage, tmp_path / "run") == 0
    assert max(ahead) == loop.AHEAD == 2
    *waited, last = waited
    assert len(waited) == len(begun) - loop.AHEAD == 10
    assert all(mine is theirs for mine, theirs in zip(waited, begun, strict=False))
    assert last is begun[-1]  # before its evaluation and checkpoint
