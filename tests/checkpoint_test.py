"""Checkpoints that are not what was written: every file of one, damaged in every way; one of an older version."""

import contextlib
import json
import resource
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from etils import epath
from orbax.checkpoint._src.metadata.checkpoint import _MetadataStoreImpl as MetadataFile

from colajax.errors import TryAgain, UserError
from colajax.stages.vae import VAEStage
from colajax.train import checkpoint
from colajax.train.aside import set_damaged_aside
from colajax.train.checkpoint import Checkpoints, checkpoint_step, read_params
from colajax.train.digests import FILE, FORMAT
from colajax.train.loop import train
from colajax.train.state import TrainState
from colajax.train.stored import open_arrays

KEPT = Path(__file__).parent / "checkpoints"  # a workdir of each format, at step 3


def state_at(step: int) -> TrainState:
    params = {"vae": {"blocks": {"kernel": step + jnp.arange(24.0).reshape(3, 4, 2)}, "scale": jnp.full(5, 1.0 / step)}}
    moments = {"vae": (jnp.int32(step), jax.tree.map(lambda x: -x, params["vae"]))}
    return TrainState(jnp.int32(step), params, moments, {"reference": jnp.zeros((2, 3))})


def like() -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(1))


def assert_state(workdir, step: int) -> None:
    found = Checkpoints(workdir, keep_every=100).restore(step, like())
    for mine, expected in zip(jax.tree.leaves(found), jax.tree.leaves(state_at(step)), strict=True):
        assert mine.dtype == expected.dtype
        np.testing.assert_array_equal(mine, expected)


def save(workdir, *steps: int) -> None:
    checkpoints = Checkpoints(workdir, keep_every=100)
    for step in steps:
        checkpoints.save(state_at(step), {})
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with steps 3 and 6; only read it."""
    workdir = epath.Path(tmp_path_factory.mktemp("run"))
    save(workdir, 3, 6)
    return workdir


def flip(file: epath.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().length // 2]),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().length)),
    "removed": lambda file: file.unlink(),
}


def files_of(checkpoint: epath.Path) -> list[str]:
    return sorted(str(path.relative_to(checkpoint)) for path in Path(checkpoint).rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_named_and_the_one_before_is_gone_on_from(saved, tmp_path, capsys, damage):
    names = [name for name in files_of(saved / "checkpoints" / "6") if name != "commit_success.txt"]
    names = [name for name in names if (damage, name) != ("removed", FILE)]  # of which the test below is
    assert len(names) > 5
    for number, name in enumerate(names):
        workdir = epath.Path(shutil.copytree(saved, tmp_path / str(number)))
        newest = workdir / "checkpoints" / "6"
        DAMAGES[damage](newest / name)
        with pytest.raises(UserError, match=r"checkpoints/6: damaged \(.*; remove it to go on from the .* one, 3"):
            read_params(workdir, like=like().params)
        set_damaged_aside(workdir)
        said = capsys.readouterr().err
        assert f"checkpoints/6: damaged ({name} is " in said
        assert said.count("\n") == 1
        assert checkpoint_step(workdir) == 3
        assert_state(workdir, 3)
        assert {*files_of(workdir / "damaged" / "6-0")} >= {*names} - {name}
        save(workdir, 6)  # the run comes by there again
        assert_state(workdir, 6)


def test_an_unfinished_or_empty_folder_is_none(saved, tmp_path):
    workdir = epath.Path(shutil.copytree(saved, tmp_path / "run"))
    (workdir / "checkpoints" / "9").mkdir()
    set_damaged_aside(workdir)
    assert checkpoint_step(workdir) == 6
    assert_state(workdir, 6)


def test_where_all_are_damaged_none_is_moved(saved, tmp_path):
    workdir = epath.Path(shutil.copytree(saved, tmp_path / "run"))
    for step in ("3", "6"):
        flip(workdir / "checkpoints" / step / "state" / "manifest.ocdbt")
    before = files_of(workdir)
    with pytest.raises(UserError, match=r"every checkpoint is damaged \(6: state/manifest.ocdbt is .*; 3: state/"):
        set_damaged_aside(workdir)
    assert files_of(workdir) == before


def test_an_older_one_is_removed_once_the_newer_one_has_digests(tmp_path, monkeypatch):
    seen, write = [], checkpoint.write_digests

    def write_and_look(folder):
        seen.append({path.name for path in folder.parent.iterdir() if (path / FILE).exists()})
        write(folder)

    monkeypatch.setattr(checkpoint, "write_digests", write_and_look)
    save(epath.Path(tmp_path), 1, 2, 3, 4)
    assert seen == [set(), {"1"}, {"1", "2"}, {"2", "3"}]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "4"}


def test_digests_are_of_what_orbax_is_still_to_write(tmp_path, monkeypatch, capsys):
    """Its thread for the checkpoint's metadata is a slow one here."""
    update = MetadataFile.update
    monkeypatch.setattr(MetadataFile, "update", lambda *args, **kwargs: [time.sleep(0.3), update(*args, **kwargs)])
    save(epath.Path(tmp_path), 1)
    set_damaged_aside(epath.Path(tmp_path))
    assert "damaged" not in capsys.readouterr().err
    assert_state(epath.Path(tmp_path), 1)


def test_one_without_digests_is_read_and_that_is_said(saved, tmp_path, capsys):
    """As versions before them wrote it."""
    workdir = epath.Path(shutil.copytree(saved, tmp_path / "run"))
    (workdir / "checkpoints" / "6" / FILE).unlink()
    set_damaged_aside(workdir)
    assert "checkpoints/6: without digests" in capsys.readouterr().err
    assert_state(workdir, 6)


def test_a_run_goes_on_from_the_newest_that_is_whole(alone, records, tmp_path, capsys):
    workdir = epath.Path(shutil.copytree(alone, tmp_path / "run"))
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"8", "12"}
    flip(next((workdir / "checkpoints" / "12" / "state" / "d").iterdir()))
    assert train(tiny_runs.tiny_config("vae", f"records={records}"), VAEStage, workdir) == 0
    output = capsys.readouterr()
    assert "checkpoints/12: damaged (state/d/" in output.err
    assert "going on from step 8\n" in output.out
    for part in ("params", "opt_state"):
        found, expected = (jax.tree.map(np.asarray, open_arrays(w, 12, part=part)[1]) for w in (workdir, alone))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    steps = [line["step"] for line in tiny_runs.read_metrics(workdir)]
    assert steps == [line["step"] for line in tiny_runs.read_metrics(alone)]


@pytest.mark.parametrize("format", range(1, FORMAT + 1))
def test_every_format_that_ever_was_is_read(format, tmp_path):
    workdir = epath.Path(shutil.copytree(KEPT / f"format{format}", tmp_path / "run"))
    set_damaged_aside(workdir)
    assert_state(workdir, 3)


def test_a_format_to_come_is_refused(saved, tmp_path):
    workdir = epath.Path(shutil.copytree(saved, tmp_path / "run"))
    file = workdir / "checkpoints" / "6" / FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(UserError, match=f"digests.json: format {FORMAT + 1}; this version of colajax reads {FORMAT}"):
        set_damaged_aside(workdir)


@contextlib.contextmanager
def small_files(most: int):
    """What this process writes into one file ends at so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_one_that_cannot_be_saved_costs_no_more_than_itself(tmp_path, capsys):
    """A real refusal of the kernel, in the background or at once; the next one is saved, and the one before kept."""
    workdir = epath.Path(tmp_path / "run")
    checkpoints = Checkpoints(workdir, keep_every=100)
    checkpoints.save(state_at(2), {})
    checkpoints.save(state_at(3), {})
    checkpoints.wait()
    with small_files(200):
        checkpoints.save(state_at(6), {})
        checkpoints.wait()
    assert f"WARNING: {workdir}/checkpoints/6: not saved (" in capsys.readouterr().err
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3"]
    assert_state(workdir, 3)
    checkpoints.save(state_at(9), {})
    checkpoints.close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "9"]
    assert_state(workdir, 9)


def test_a_run_whose_last_one_cannot_be_saved_does_not_end_well(tmp_path):
    workdir = epath.Path(tmp_path / "run")
    checkpoints = Checkpoints(workdir, keep_every=100)
    checkpoints.save(state_at(3), {})
    checkpoints.wait()
    with small_files(200):
        checkpoints.save(state_at(6), {})
        with pytest.raises(TryAgain, match="the checkpoint of step 6 could not be saved; make room"):
            checkpoints.close()
    assert_state(workdir, 3)
