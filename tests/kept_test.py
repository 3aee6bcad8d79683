"""Runs that go on: what of their configuration may change, what is missed, and what one run takes from another."""

import functools
import json
import shutil

import pytest
from etils import epath
from refusals import error_of, error_of_training
from tiny_runs import tiny_config

from colajax.data.records import read_metadata
from colajax.errors import UserError
from colajax.train.config import check_config, flatten, keep_config, load_config
from colajax.train.kept import NULLABLE, defaults_of, read_kept
from colajax.train.optimizer import learning_rate_schedule


@pytest.fixture(scope="module")
def digest(records):
    return read_metadata(records)["tokenizer"]["digest"]


def leave_run(workdir, config, digest):
    """A workdir as a training begins it, or goes on with it."""
    facts = {"tokenizer": digest, "records": "r"}
    check_config(epath.Path(workdir), config, facts)
    keep_config(epath.Path(workdir), config, facts)
    return workdir


def test_the_kept_configuration_is_complete(digest, tmp_path):
    config = tiny_config("joint")
    workdir = leave_run(tmp_path / "run", config, digest)
    saved = json.loads((workdir / "config.json").read_text())
    assert saved.pop("facts") == {"tokenizer": digest, "records": "r"}
    assert saved == json.loads(json.dumps(config.to_dict()))
    assert [path.name for path in workdir.iterdir()] == ["config.json"]
    assert saved["vae"]["dim"] == 32


def test_a_run_goes_on_with_its_configuration_alone(records, digest, tmp_path):
    config = tiny_config("vae", f"records={records}", "objective.beta=0.25", "seed=66")
    workdir = leave_run(tmp_path / "run", config, digest)
    message = error_of_training(tiny_config("vae", f"records={records}", "objective.beta=0.5", "seed=3"), workdir)
    assert str(workdir) in message
    assert "objective.beta was 0.25, is 0.5" in message
    assert "seed was 66, is 3" in message
    assert "another --workdir" in message


def test_operational_keys_may_change_when_a_run_goes_on(digest, tmp_path):
    workdir = leave_run(tmp_path / "run", tiny_config("joint", "init_from=here"), digest)
    operational = [
        "records=elsewhere", "log_every=3", "eval_every=7", "eval_rows=4", "checkpoint_every=2", "keep_every=9",
        "init_from=moved", "records_cache=disk", "remat=full", "accumulation_steps=2", "mesh.fsdp=2",
    ]  # fmt: skip
    changed = tiny_config("joint", *operational)
    leave_run(workdir, changed, digest)
    kept = json.loads((workdir / "config.json").read_text())
    assert {key: value for key, value in kept.items() if key != "facts"} == json.loads(json.dumps(changed.to_dict()))
    assert kept["facts"] == {"tokenizer": digest, "records": "r"}
    assert "facts.tokenizer was" in error_of(leave_run, workdir, changed, "another")


def test_whether_there_is_a_reference_encoder_may_not_change(digest, tmp_path):
    workdir = leave_run(tmp_path / "run", tiny_config("joint", "objective.lambda_ref=0.0", "init_from=here"), digest)
    message = error_of(leave_run, workdir, tiny_config("joint", "objective.lambda_ref=0.0"), digest)
    assert "init_from was 'here', is ''" in message


def older(workdir, *keys):
    """Makes a run's config.json one of a program that had not got these keys yet."""
    path = workdir / "config.json"
    kept = json.loads(path.read_text())
    for key in keys:
        *parents, last = key.split(".")
        del functools.reduce(dict.__getitem__, parents, kept)[last]
    path.write_text(json.dumps(kept))


NEW = (
    "init_step", "optimizer.decay_steps", "optimizer.rewarm_from", "isolate_documents", "vae.rope_full_precision",
    "dit.qk_bias",
)  # fmt: skip


def test_a_run_that_is_too_old_to_have_a_key_goes_on_with_its_default(digest, tmp_path):
    config = tiny_config("joint")
    workdir = leave_run(tmp_path / "run", config, digest)
    older(workdir, *NEW)
    loaded = load_config(str(workdir / "config.json"), [])
    assert flatten(loaded.to_dict()) == flatten(config.to_dict())
    leave_run(workdir, config, digest)
    assert set(NEW) <= flatten(json.loads((workdir / "config.json").read_text())).keys()  # said from now on
    older(workdir, *NEW)
    for key, was, value in (("optimizer.rewarm_from", 0, 3), ("isolate_documents", False, True)):
        with pytest.raises(UserError, match=f"{key} was {was}, is {value}"):
            leave_run(workdir, tiny_config("joint", f"{key}={value}"), digest)
    older(workdir, "optimizer.peak")  # there from the beginning: without it nobody knows
    with pytest.raises(UserError, match=r"config\.json: .*optimizer\.peak is missing"):
        leave_run(workdir, config, digest)


@pytest.mark.parametrize("stage", ["vae", "joint", "ar", "llada"])
def test_every_key_of_a_kept_configuration_is_missed_and_has_a_type(stage, digest, tmp_path):
    path = leave_run(tmp_path / "run", tiny_config(stage), digest) / "config.json"
    whole = path.read_text()
    keys = flatten(json.loads(whole)).keys() - {"facts.records"}
    for key in keys:
        *parents, last = key.split(".")
        for value in ({"x": 1}, None, "delete"):
            kept = json.loads(whole)
            node = functools.reduce(dict.__getitem__, parents, kept)
            node[last] = value
            if value == "delete":
                del node[last]
            path.write_text(json.dumps(kept))
            if (value == "delete" and key in defaults_of(kept)) or (value is None and key in NULLABLE):
                assert flatten(read_kept(path)).keys() >= keys
                continue
            message = error_of(read_kept, path)
            assert message.startswith(f"{path}: damaged")
            assert key in message


def test_the_configuration_of_a_run_can_be_overridden_like_the_file_it_came_from(digest, tmp_path):
    workdir = leave_run(tmp_path / "run", tiny_config("joint", "objective.fixed_log_snr=1.5"), digest)
    overrides = {
        "objective.fixed_log_snr": 2.0, "optimizer.lr_ratio": (("vae/.*", 0.01), (".*", 1.0)), "init_step": 7,
        "optimizer.decay_steps": 10,
    }  # fmt: skip
    config = load_config(str(workdir / "config.json"), [f"{key}={value!r}" for key, value in overrides.items()])
    found = flatten(config.to_dict())
    assert {key: found[key] for key in overrides} == overrides
    assert load_config(str(workdir / "config.json"), ["objective.fixed_log_snr=None"]).objective.fixed_log_snr is None


@pytest.mark.parametrize("content", ["", "[]", '{"stage": "vae"', '{"stage": "vae"}'])
def test_a_damaged_config_json_is_named(content, digest, tmp_path):
    workdir = leave_run(tmp_path / "run", tiny_config("vae"), digest)
    (workdir / "config.json").write_text(content)
    for use in (lambda: load_config(str(workdir / "config.json"), []),
                lambda: check_config(epath.Path(workdir), tiny_config("vae"), {})):  # fmt: skip
        assert f"{workdir}/config.json: damaged" in error_of(use)


def test_a_longer_run_needs_a_word_on_its_learning_rate(digest, tmp_path):
    workdir = leave_run(tmp_path / "run", tiny_config("vae"), digest)
    message = error_of(leave_run, workdir, tiny_config("vae", "total_steps=20"), digest)
    assert "total_steps was 12, is 20" in message
    assert "--config.optimizer.decay_steps=12" in message
    longer = tiny_config("vae", "total_steps=20", "optimizer.decay_steps=12")
    leave_run(workdir, longer, digest)
    rate = learning_rate_schedule(longer.optimizer, longer.total_steps)
    before = learning_rate_schedule(tiny_config("vae").optimizer, 12)
    assert [float(rate(step)) for step in range(13)] == [float(before(step)) for step in range(13)]
    assert float(rate(12)) == float(rate(19)) == pytest.approx(longer.optimizer.end_value)


def test_stage_2_starts_from_a_fitting_stage_1_run_only(records, digest, tmp_path):
    def error_from(config, tokenizer=digest):
        shutil.rmtree(tmp_path / "one", ignore_errors=True)
        one = leave_run(tmp_path / "one", config, tokenizer)
        return error_of_training(tiny_config("joint", f"records={records}", f"init_from={one}"), tmp_path / "two")

    assert "is a run of stage 'joint'; expected 'vae'" in error_from(tiny_config("joint"))
    assert "dim is 32, there 64" in error_from(tiny_config("vae", "vae.dim=64"))
    assert "another tokenizer" in error_from(tiny_config("vae"), "another")
    assert "no checkpoint" in error_from(tiny_config("vae"))
    nowhere = tiny_config("joint", f"records={records}", f"init_from={tmp_path}/nowhere")
    assert "nowhere: no run there" in error_of_training(nowhere, tmp_path / "two")
