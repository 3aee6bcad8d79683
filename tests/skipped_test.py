"""Updates that are not sound: a run ends with the bits of one whose data never had their batches, however it is stopped
on the way; and one whose state is not sound goes back, past them."""

import importlib
import json
import math
import shutil
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tiny_runs
from etils import epath

from colajax.chaos.unsound import iterate_without, with_unsound
from colajax.data.loader import Loader
from colajax.errors import UserError
from colajax.stages.vae import VAEStage
from colajax.train import updates
from colajax.train.loop import train
from colajax.train.replay import replay
from colajax.train.setup import loader_of
from colajax.train.stored import open_arrays

LAST = 12  # steps; tiny_runs saves every 4


class Case(NamedTuple):
    records: str
    overrides: tuple[str, ...] = ()

    def config(self):
        return tiny_runs.tiny_config("vae", f"records={self.records}", f"total_steps={LAST}", *self.overrides)

    def stage(self, bad=(), factor=np.nan):
        """A stage whose loss is `factor` times as large on these batches."""
        return with_unsound(VAEStage, self.config(), bad, factor)

    def run(self, workdir, bad=(), factor=np.nan) -> int:
        return train(self.config(), self.stage(bad, factor), workdir)


@pytest.fixture
def case(records):
    return Case(records)


def without(monkeypatch, *left_out):
    """From here on the data does not have these batches."""
    monkeypatch.setattr(Loader, "iterate", iterate_without(left_out))


def numbers(workdir, step=None) -> list[bytes]:
    return [
        np.asarray(array).tobytes()
        for part in ("step", "params", "opt_state")
        for array in jax.tree.leaves(open_arrays(workdir, step, part=part)[1], is_leaf=lambda x: hasattr(x, "read"))
    ]  # fmt: skip


def assert_same_run(workdir, other) -> None:
    assert numbers(workdir) == numbers(other)
    assert (workdir / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


def test_batches_that_are_not_sound_are_as_if_they_were_not_there(case, tmp_path, monkeypatch, capsys):
    """The first, two in a row, at a checkpoint and near the end."""
    bad = (0, 5, 6, 11, 13, 16)
    workdir, other = epath.Path(tmp_path / "run"), epath.Path(tmp_path / "other")
    assert case.run(workdir, bad) == 0
    said = capsys.readouterr().err
    # The same program, so that bits can be compared; it never meets them.
    without(monkeypatch, *bad)
    assert case.run(other, bad) == 0
    assert_same_run(workdir, other)
    assert not (other / "skipped").exists()
    found = {file.name: json.loads(file.read_text()) for file in (workdir / "skipped").iterdir()}
    assert sorted(line["batch"] for line in found.values()) == list(bad)
    for name, line in found.items():
        assert name == f"{line['begins']}-{line['batch']}.json"
        assert line["means"]["loss"] == "nan"
        rows = [int(row) for row in line["rows"]]
        loader = loader_of(case.config(), "train")
        np.testing.assert_array_equal(loader.sequential(rows), loader.batch(line["batch"]))
        assert (
            f"WARNING: batch {line['batch']} skipped at step {line['begins']}: loss nan, gradient_norm_vae nan" in said
        )


def test_stopped_where_updates_are_skipped(case, tmp_path, monkeypatch):
    bad = (5, 7)
    workdir, other = epath.Path(tmp_path / "run"), epath.Path(tmp_path / "other")
    for after in (6, 8):
        with monkeypatch.context() as patch:
            tiny_runs.stop_after(patch, after)
            assert case.run(workdir, bad) == 128 + 15
    assert case.run(workdir, bad) == 0
    without(monkeypatch, *bad)
    assert case.run(other, bad) == 0
    assert_same_run(workdir, other)


def test_a_spike_is_skipped_where_it_is_asked_for(records, tmp_path, monkeypatch):
    """Batch 24 has a loss of a hundred times its size: far from what the last ones had, and no less a number."""
    monkeypatch.setattr(updates, "LEAST", 16)
    length = ("total_steps=30", "log_every=1", "checkpoint_every=15", "eval_every=30")
    asked = Case(records, (*length, "spike_sigmas=8.0"))
    bad, factor = (24,), 100.0
    workdir, stopped, other = (epath.Path(tmp_path / name) for name in ("asked", "stopped", "other"))
    assert asked.run(workdir, bad, factor) == 0
    (file,) = (workdir / "skipped").iterdir()
    found = json.loads(file.read_text())
    assert found["batch"] == 24
    assert float(found["means"]["loss"]) > float(found["limits"]["loss"]) > 0
    again = replay(file, asked.config(), asked.stage(bad, factor))
    assert (again.since, again.recorded.rows) == (15, found["rows"])
    assert again.again == again.recorded._replace(began_at=15, began_with=15)  # to the bit
    assert all(map(math.isfinite, again.gradients.values()))
    monkeypatch.syspath_prepend(tiny_runs.ROOT / "tools")
    said = "\n".join(importlib.import_module("replay").lines_of(again))
    assert f"loss {found['means']['loss']}  here {found['means']['loss']}" in said
    assert "the same to the bit" in said
    assert all(f"  {row}: " in said for row in found["rows"])
    # What it is judged by is in the checkpoints.
    with monkeypatch.context() as patch:
        tiny_runs.stop_after(patch, 21)
        assert asked.run(stopped, bad, factor) == 128 + 15
    assert asked.run(stopped, bad, factor) == 0
    assert_same_run(stopped, workdir)
    without(monkeypatch, 24)
    assert asked.run(other, bad, factor) == 0
    assert_same_run(workdir, other)


def test_limits_are_of_what_the_host_knows_for_certain():
    """By hand: mean and deviation of the last WINDOW values but for the last AHEAD, and none before there are LEAST."""
    limits, values = updates.Limits(3.0, {}), np.random.default_rng(0).normal(5, 1, 300)
    for step, value in enumerate(values, 1):
        limits.add(step, {"loss": value})
        known = values[: max(step - updates.AHEAD, 0)]
        expected = np.inf
        if len(known) >= updates.LEAST:
            expected = np.float32(known[-updates.WINDOW :].mean() + 3 * known[-updates.WINDOW :].std())
        assert limits.of(("loss",), step)["loss"] == pytest.approx(expected)
    unbounded = updates.Limits(0.0, limits.facts())  # the default
    assert unbounded.of(("loss",), 300) == {"loss": np.inf}
    again = updates.Limits(3.0, json.loads(json.dumps(limits.facts())))
    assert again.of(("loss", "new"), 300) == limits.of(("loss",), 300) | {"new": np.inf}


@pytest.mark.parametrize(
    ("bad", "left_out", "back_to"), [((9, 10, 11, 13), (8, 9, 10, 11, 13), 8), ((8, 9, 10), (4, 5, 6, 7, 8, 9, 10), 4)]
)
def test_many_in_a_row_send_it_back(records, tmp_path, monkeypatch, capsys, bad, left_out, back_to):
    case = Case(records, ("skips_in_a_row=3",))
    workdir, other = epath.Path(tmp_path / "run"), epath.Path(tmp_path / "other")
    assert case.run(workdir, bad) == 0
    said = capsys.readouterr().err
    assert f"back to step {back_to}, past their batches" in said
    # A checkpoint after which no update was sound is not to be gone on from.
    aside = {path.name for path in (workdir / "damaged").iterdir()} if (workdir / "damaged").exists() else set()
    assert aside == ({"8-0"} if back_to == 4 else set())
    # Of a batch before it went back, and of one behind; where it comes from the run's beginning, and where it cannot.
    files = sorted((workdir / "skipped").iterdir(), key=lambda file: int(file.stem.split("-")[1]))
    for file in (files[0], files[-1])[: 1 + (back_to == 8)]:
        again = replay(file, case.config(), case.stage(bad))
        assert (again.again.batch, again.again.begins) == (again.recorded.batch, again.recorded.begins)
        assert again.again.rows == again.recorded.rows
        assert not any(map(math.isfinite, again.gradients.values()))
    if back_to == 8:
        shutil.rmtree(workdir / "checkpoints" / "8")
        with pytest.raises(UserError, match="has kept no checkpoint of steps 8 to 9"):
            replay(file, case.config(), case.stage(bad))
    without(monkeypatch, *left_out)
    assert case.run(other, bad) == 0
    assert_same_run(workdir, other)


def test_with_nothing_to_go_back_to_it_ends(records, tmp_path):
    case = Case(records, ("skips_in_a_row=3",))
    workdir = epath.Path(tmp_path / "run")
    with pytest.raises(UserError, match=r"3 updates in a row were not sound; there is no checkpoint"):
        case.run(workdir, (2, 3, 4))
    with pytest.raises(UserError, match=r"3 updates in a row.*the last checkpoint is of step 4"):
        case.run(tmp_path / "two", tuple(range(6, 12)))
    assert not (workdir / "checkpoints" / "2").exists()
