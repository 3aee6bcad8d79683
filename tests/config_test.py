"""Configurations that ship, overrides, and every mistake in one line before anything is written."""

import functools
import importlib.util
import subprocess
import sys

import jax
import pytest
from refusals import error_of, error_of_training
from tiny_runs import ROOT, file_of, tiny_config

from colajax.stages import stage_of
from colajax.train.config import flatten, load_config

MADE_BY_NAME = ("ablations.py", "ladder.py")  # from a table of their own, which has its own test
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py") if path.name not in MADE_BY_NAME)


# ---- configurations that ship ----------------------------------------------------------------------------------------
def _variants():
    for name in CONFIGS:
        spec = importlib.util.spec_from_file_location(name[:-3], ROOT / "configs" / name)
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(ROOT / "configs"))
        spec.loader.exec_module(module)
        sys.path.pop(0)
        yield from ((name, variant) for variant in module.VARIANTS)


@pytest.mark.parametrize(("name", "variant"), list(_variants()))
def test_every_shipped_configuration_builds_its_stage(name, variant):
    config = load_config(f"{ROOT}/configs/{name}:{variant}", [])
    stage = stage_of(config)(config, pad_id=0, eos_id=1)
    shapes = stage.shapes()
    millions = {group: sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6 for group, tree in shapes.items()}
    if variant == "":
        assert 480 < millions.get("vae", 500) < 520
        assert 1700 < millions.get("dit", 1800) < 1900
        assert 2222 < millions.get("llama", 2222.5) < 2223
        assert stage.compute_params() == (millions["vae"] * 1e6 if config.stage == "vae" else 1_800_000_000)
    else:
        assert sum(millions.values()) < 5


@pytest.mark.parametrize("stage", ["joint", "ar", "llada"])
def test_the_eflop_axis_of_the_paper(stage):
    config = load_config(file_of(stage), [])
    stage = stage_of(config)(config, pad_id=0, eos_id=1)
    a_step = 6 * stage.compute_params() * config.batch_size * config.sequence_length / 1e18
    assert [10_000 * a_step, 15_000 * a_step] == pytest.approx([77.86, 116.78], abs=0.01)


def test_every_ablation_changes_what_it_says_and_has_a_stage_1_that_fits(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "configs"))
    ablations = importlib.import_module("ablations")

    @functools.cache
    def loaded(spec):
        return load_config(f"{ROOT}/configs/{spec}", [])

    for variant, (name, of_stage_1, quickstart) in ablations.VARIANTS.items():
        config, size = loaded(f"ablations.py:{variant}"), "-quickstart" if quickstart else ""
        plain = f"{'cola_vae' if of_stage_1 else 'cola_joint'}.py:{size[1:]}"
        said = (ablations.QUICKSTART if quickstart else {}).get(name, ablations.ABLATIONS[name])
        said = {key: value for key, value in said.items() if not of_stage_1 or key.startswith(ablations.STAGE_1)}
        assert flatten(config.to_dict()) == flatten(loaded(plain).to_dict()) | said
        if f"{name}-vae{size}" in ablations.VARIANTS and quickstart and not of_stage_1:
            first = loaded(f"ablations.py:{name}-vae{size}")
            stage_of(config)(config, pad_id=0, eos_id=1).check_start(first.to_dict())


# ---- overrides -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.peak=1", "optimizer.peak", 1.0),
        ("total_steps=1_000", "total_steps", 1000),
        ("records=2024", "records", "2024"),  # a folder may be called like a number
        ("init_from=", "init_from", ""),
        ("objective.train_vae=False", "objective.train_vae", False),
        ("objective.fixed_log_snr=2", "objective.fixed_log_snr", 2.0),
        ("objective.fixed_log_snr=None", "objective.fixed_log_snr", None),
        ("optimizer.lr_ratio=(('vae/.*', 0.01), ('.*', 1.0))", "optimizer.lr_ratio", (("vae/.*", 0.01), (".*", 1.0))),
    ],
)
def test_overrides_set_values_of_the_default_s_type(override, key, value):
    found = flatten(tiny_config("joint", override).to_dict())[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimiser.peak=1", ["--config.optimiser.peak", "did you mean optimizer.peak?"]),
        ("batchsize=8", ["--config.batchsize", "did you mean batch_size?"]),
        ("batch_size.x=8", ["--config.batch_size.x", "unknown key"]),
        ("qqqq=8", ["--config.qqqq", "known: accumulation_steps, alerts, batch_size"]),
        ("batch_size", ["--config.batch_size", "expected --config.KEY=VALUE"]),
        ("batch_size=3.5", ["--config.batch_size=3.5", "type int", "8"]),
        ("batch_size=many", ["--config.batch_size=many", "type int"]),
        ("batch_size=None", ["type int"]),
        ("batch_size=True", ["type int"]),
        ("objective.train_vae=false", ["type bool", "True"]),
        ("objective.train_vae=1", ["type bool"]),
        ("objective.fixed_log_snr=high", ["type float"]),
        ("optimizer.lr_ratio=0.5", ["type tuple", "'.*'"]),
        ("optimizer.clip=1e999", ["--config.optimizer.clip=1e999", "finite"]),
        ("vae=3", ["--config.vae", "group of keys", "vae."]),
    ],
)
def test_a_bad_override_is_named_with_what_was_expected(override, parts):
    message = error_of(tiny_config, "joint", override)
    for part in parts:
        assert part in message


def test_a_missing_file_and_an_unknown_variant():
    assert "nowhere.py: no such configuration file" in error_of(load_config, "nowhere.py", [])
    message = error_of(load_config, f"{ROOT}/configs/cola_vae.py:quick", [])
    assert "no variant 'quick'" in message
    assert "cola_vae.py:quickstart" in message


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("def get_config(:\n", "SyntaxError: invalid syntax (own.py, line 1)"),
        ("import nowhere\n", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
        (
            "VARIANTS = ('',)\ndef get_config(variant):\n    return typo\n",
            "line 3: NameError: name 'typo' is not defined",
        ),
        ("VARIANTS = ('',)\n", "no configuration file; expected VARIANTS and get_config(variant) in it"),
    ],
)
def test_a_mistake_in_a_configuration_file(program, said, tmp_path):
    (tmp_path / "own.py").write_text(program)
    assert error_of(load_config, str(tmp_path / "own.py"), []) == f"{tmp_path}/own.py: {said}"


# ---- configurations that do not fit ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stage", "overrides", "parts"),
    [
        ("vae", ["vae.block_size=12"], ["sequence_length is 32", "patch_size * block_size = 12", "36"]),
        ("vae", ["isolate_documents=True", "vae.patch_size=2"], ["config.isolate_documents", "vae.patch_size 2"]),
        ("vae", ["vae.vocab_size=100"], ["config.vae.vocab_size is 100", "500 tokens"]),
        ("vae", ["batch_size=6"], ["batch_size is 6", "accumulation_steps * mask_every = 1 * 4"]),
        ("vae", ["accumulation_steps=3"], ["batch_size is 8", "3 * 4"]),
        ("vae", ["accumulation_steps=0"], ["batch_size is 8", "accumulation_steps"]),
        ("vae", ["sequence_length=64"], ["rows of 32 tokens", "sequence_length is 64"]),
        ("vae", ["batch_size=0"], ["config.batch_size is 0"]),
        ("vae", ["records="], ["config.records", "tools/prepare_data.py"]),
        ("vae", ["remat=some"], ["remat is 'some'", "none, dots, full"]),
        ("vae", ["compute_dtype=float16"], ["compute_dtype is 'float16'", "bfloat16"]),
        ("vae", ["vae.num_heads=5"], ["config.vae", "dim is 32", "num_heads"]),
        ("vae", ["total_steps=3"], ["warmup_steps is 3", "total_steps"]),
        ("vae", ["log_every=0"], ["config.log_every is 0", "at least 1"]),
        ("vae", ["checkpoint_every=-1"], ["config.checkpoint_every is -1"]),
        ("vae", ["optimizer.lr_ratio=(('vea/.*', 0.1), ('.*', 1.0))"], ["lr_ratio", "'vea/.*' matches no parameter"]),
        ("vae", ["optimizer.lr_ratio=(1, 2)"], ["lr_ratio", "1: expected rows of (regular expression, number)"]),
        ("vae", ["optimizer.lr_ratio=(('(', 1.0),)"], ["lr_ratio", "regular expression"]),
        ("vae", ["optimizer.lr_ratio=(('.*', 1e999),)"], ["lr_ratio", "inf", "number"]),
        ("vae", ["optimizer.clip=0"], ["config.optimizer.clip is 0", "more than 0"]),
        ("vae", ["optimizer.b2=1"], ["config.optimizer.b2 is 1", "less than 1"]),
        ("vae", ["optimizer.peak=-1e-3"], ["config.optimizer.peak is -0.001"]),
        ("vae", ["vae.rope_theta=0"], ["config.vae", "rope_theta is 0", "a positive number"]),
        ("joint", [], ["config.init_from", "--config.init_from=DIR"]),
        ("joint", ["objective.lambda_ref=0", "objective.train_vae=False"], ["config.init_from"]),
        ("joint", ["dit.block_size=4"], ["block_size is 4", "8, or a multiple of it"]),
        ("joint", ["vae.block_size=1", "dit.block_size=12"], ["sequence_length is 32", "block_size = 12", "36"]),
        ("joint", ["dit.txt_in_channels=8", "dit.txt_out_channels=8"], ["txt_in_channels is 8", "latent_dim, 4"]),
        ("joint", ["objective.time_distribution=normal"], ["time_distribution is 'normal'", "uniform"]),
        ("joint", ["objective.interval=5", "objective.interval_joint=6"], ["interval_joint is 6", "interval - 1 (4)"]),
        ("joint", ["objective.interval=5"], ["interval_joint is 0", "train_vae=False"]),
        ("joint", ["vae.block_causal=False"], ["config.vae.block_causal"]),
        ("joint", ["compute_params=1800000000"], ["compute_params is 1,800,000,000", "compute_params=0"]),
        ("ar", ["compute_params=1800000000"], ["compute_params is 1,800,000,000", "config.llama without its embedd"]),
        ("ar", ["llama.vocab_size=100"], ["config.llama.vocab_size is 100", "500 tokens"]),
        ("ar", ["llama.num_attention_heads=3"], ["config.llama", "hidden_size is 32", "num_attention_heads (3)"]),
        ("ar", ["llama.rope_theta=0"], ["config.llama", "rope_theta is 0", "a positive number"]),
        ("ar", ["accumulation_steps=3"], ["batch_size is 8", "a multiple of accumulation_steps = 3"]),
        ("llada", ["objective.least_rate=0"], ["config.objective.least_rate is 0", "between 0 and 1"]),
        ("llada", ["objective.cut_probability=2"], ["config.objective.cut_probability is 2", "0 to 1"]),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(stage, overrides, parts, records, tmp_path):
    message = error_of_training(tiny_config(stage, f"records={records}", *overrides), tmp_path / "run")
    for part in parts:
        assert part in message


def test_records_that_are_none(tmp_path):
    message = error_of_training(tiny_config("vae", f"records={tmp_path}"), tmp_path / "run")
    assert "not a records folder" in message


def test_a_workdir_that_is_a_file(records, tmp_path):
    workdir = tmp_path / "run"
    workdir.write_text("kept")
    assert f"{workdir}: a file" in error_of_training(tiny_config("vae", f"records={records}"), workdir)
    assert workdir.read_text() == "kept"


# ---- the command lines -----------------------------------------------------------------------------------------------
def command(*arguments):
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)


def assert_refused(result, *parts):
    """Exit code 2 and one line."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


RECORDS = "--config.records=RECORDS"


@pytest.mark.parametrize(
    ("config", "more", "part"),
    [
        ("configs/cola_vae.py:quickstart", ["--config.vae.dimm=3"], "did you mean vae.dim?"),
        ("configs/cola_joint.py:quickstart", [RECORDS, "--config.sequence_length=32"], "config.init_from"),
        ("configs/cola_vae.py", ["--confg.seed=3"], "--confg.seed=3: unknown argument"),
    ],
)
def test_training_from_the_command_line(config, more, part, records, tmp_path):
    more = [argument.replace("RECORDS", str(records)) for argument in more]
    result = command("-m", "colajax.train", "--config", config, "--workdir", tmp_path / "run", *more)
    assert_refused(result, part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tool", "more"),
    [
        ("generate.py", ["--prompt", "Anna"]),
        ("evaluate.py", ["--records", "RECORDS"]),
        ("export_hf.py", ["--out", "OUT"]),
    ],
)
def test_tools_on_a_folder_without_a_run(tool, more, records, tmp_path):
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    more = [argument.replace("RECORDS", str(records)).replace("OUT", str(out)) for argument in more]
    assert_refused(command(f"tools/{tool}", "--workdir", empty, *more), f"{empty}: no ", "workdir of a training")
    assert sorted(tmp_path.iterdir()) == [empty]
    assert list(empty.iterdir()) == []
