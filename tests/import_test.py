"""Imported runs: training goes on from them; what does not fit is named, with exit status 2."""

import dataclasses
import json
import pathlib
import runpy
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_models
from tiny_runs import ROOT, tiny_config

from colajax.errors import UserError
from colajax.hf import layout
from colajax.hf.export import export
from colajax.hf.import_run import import_run
from colajax.models.config import from_mapping
from colajax.sampling.load import load_run
from colajax.sampling.settings import SamplingSettings
from colajax.stages.joint import JointStage
from colajax.train.config import check_config, load_config
from colajax.train.loop import train
from colajax.train.stored import open_arrays

GOLDEN = ROOT / "tests" / "golden" / "released_shape"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, records):
    """A random model of the shape of tiny_config("joint"), with the tokenizer of `records`; and its parameters."""
    folder, config, params = tmp_path_factory.mktemp("hf"), tiny_config("joint"), {}
    for group, kind in layout.KINDS["joint"].items():
        model = from_mapping(kind.config_class, config[group].to_dict(), group)
        params[group] = tiny_models.random_params(kind, model)
        layout.save(kind, model, params[group], folder / kind.folder)
    shutil.copy(records / "tokenizer.model", folder)
    return folder, params


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, found), expected)


def test_training_goes_on_from_an_imported_run(checkpoint, records, tmp_path, capsys):
    hf, params = checkpoint
    run = tmp_path / "run"
    import_run(hf, run, tiny_config("joint"), step=9)
    assert_same(open_arrays(run)[1], params)
    assert_same(open_arrays(run, part="frozen")[1], {"reference": params["vae"]["encoder"]})
    loaded = load_run(run)  # of a vocabulary larger than its tokenizer's
    assert loaded.tokenizer.vocab_size < loaded.sampler.vae_config.vocab_size
    settings = SamplingSettings(max_new_tokens=16, temperature=4.0, top_k=0, top_p=1.0)
    for answer in loaded.sampler.generate([[5, 6], [7]], settings):
        loaded.tokenizer.decode(answer)
    assert "records" not in json.loads((run / "config.json").read_text())["facts"]
    config = load_config(str(run / "config.json"), [f"records={records}"])
    assert train(config, JointStage, run) == 0
    assert f"{run}: going on from step 9" in capsys.readouterr().out
    step, trained = open_arrays(run)
    assert step == 12
    first, last = (np.asarray(tree["dit"]["head"]["kernel"]) for tree in (params, trained))
    assert 0 < np.abs(last - first).max() < 0.1
    assert_same(open_arrays(run, part="frozen")[1], {"reference": params["vae"]["encoder"]})
    facts = json.loads((run / "config.json").read_text())["facts"]
    assert set(facts) == {"tokenizer", "records"}
    with pytest.raises(UserError, match=r"facts\.records"):
        check_config(run, config, facts | {"records": "others"})
    export(run, tmp_path / "hf", load_run(run).tokenizer, {})
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| steps | 12 of 12 |" in card
    assert "| data | stories.jsonl |" in card
    assert "### Last evaluation: step 12" in card


def test_records_of_another_tokenizer_are_refused(checkpoint, tmp_path):
    import_run(checkpoint[0], tmp_path / "run", tiny_config("joint"))
    config = load_config(str(tmp_path / "run" / "config.json"), [])
    with pytest.raises(UserError, match=r"facts\.tokenizer"):
        check_config(tmp_path / "run", config, {"tokenizer": "another", "records": "a"})


def test_what_the_released_config_says_comes_out_again(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "hf")
    for kind, changes in ((layout.VAE, {"init_std": 0.5, "causal": True}), (layout.DIT, {"transformers_version": "9"})):
        path = tmp_path / "hf" / kind.folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    file = tmp_path / "hf" / "cola_dit" / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = "blocks.1.msa.rope.rope.freqs"
    tensors[name] = np.nextafter(tensors[name], np.float32(2))
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    import_run(tmp_path / "hf", tmp_path / "run", tiny_config("joint", "sequence_length=64"))
    export(tmp_path / "run", tmp_path / "out", load_run(tmp_path / "run").tokenizer, {})
    assert (tmp_path / "out" / "cola_dit" / "model.safetensors").read_bytes() == file.read_bytes()
    for kind in layout.KINDS["joint"].values():
        written = json.loads((tmp_path / "out" / kind.folder / "config.json").read_text())
        del written["auto_map"]
        assert written == json.loads((tmp_path / "hf" / kind.folder / "config.json").read_text())


@pytest.mark.parametrize("stage", ["vae", "joint"])
def test_a_vae_without_variance_is_imported_with_the_stages_own_configuration(stage, tmp_path, capsys):
    config = tiny_config(stage)
    for group, kind in layout.KINDS["joint"].items():
        if group in config:
            model = from_mapping(kind.config_class, config[group].to_dict(), group)
            if group == "vae":
                model = dataclasses.replace(model, use_variation=False)
            layout.save(kind, model, tiny_models.random_params(kind, model), tmp_path / "hf" / kind.folder)
    shutil.copy(GOLDEN / "tokenizer.json", tmp_path / "hf")
    import_run(tmp_path / "hf", tmp_path / "run", config)
    said, objective = capsys.readouterr().out, json.loads((tmp_path / "run" / "config.json").read_text())["objective"]
    assert "objective.beta is 0, not" in said if config.objective.beta else "beta" not in said
    assert objective == config.objective.to_dict() | {"beta": 0}


def cut_shard(folder):
    path = divide(folder)[1]
    path.write_bytes(path.read_bytes()[:-50])
    return [path.name, "copy it again"]


def lose_index_entry(folder):
    index, _ = divide(folder)
    content = json.loads(index.read_text())
    del content["weight_map"]["txt_in.proj.weight"]
    index.write_text(json.dumps(content))
    return ["missing", "txt_in.proj.weight"]


def lose_shard(folder):
    path = divide(folder)[1]
    path.unlink()
    return [path.name, "missing shard"]


def change_shape(folder):
    file = folder / "cola_dit" / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["txt_in.proj.weight"] = tensors["txt_in.proj.weight"][:-1].copy()
    safetensors.numpy.save_file(tensors, file)
    return ["wrong shape", "txt_in.proj.weight"]


def change_value(folder):
    path = folder / "cola_vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"act": "relu"}))
    return [str(path), "act", "relu"]


def unknown_key(folder):
    path = folder / "cola_dit" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layer": 3}))
    return [str(path), "num_layer", "num_layers"]


def lose_vae(folder):
    shutil.rmtree(folder / "cola_vae")
    return ["cola_vae"]


def lose_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    return ["tokenizer.json"]


def divide(folder):
    """Two shards of the prior; the index and the first."""
    prior = folder / "cola_dit"
    tensors = safetensors.numpy.load_file(prior / "model.safetensors")
    (prior / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + (i > 20)}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        safetensors.numpy.save_file({n: a for n, a in tensors.items() if files[n] == file}, prior / file)
    index = prior / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    return index, prior / "model-00001-of-00002.safetensors"


DAMAGES = (cut_shard, lose_index_entry, lose_shard, change_shape, change_value, unknown_key, lose_vae, lose_tokenizer)


def run_tool(monkeypatch, capsys, *arguments) -> str:
    """What tools/import_hf.py says to stderr; it must end with status 2, in one line."""
    monkeypatch.setattr(sys, "argv", ["import_hf.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "import_hf.py"), run_name="__main__")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_named(damage, tmp_path, monkeypatch, capsys):
    hf = pathlib.Path(shutil.copytree(GOLDEN, tmp_path / "hf"))
    words = damage(hf)
    said = run_tool(monkeypatch, capsys, "--hf", hf, "--workdir", tmp_path / "run")
    for word in [str(hf), *words]:
        assert word in said
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "1000000"], ["step", "999999"]),
        (["--config.sequence_length=6"], ["sequence_length", "4"]),
        (["--config.stage=vae"], ["joint", "'vae'"]),
        (["--configs=x"], ["--configs=x", "unknown argument"]),
        (["--config.vea.dim=2"], ["vea.dim"]),
        (["--config", "nowhere.json"], ["nowhere.json"]),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, words, tmp_path, monkeypatch, capsys):
    said = run_tool(monkeypatch, capsys, "--hf", GOLDEN, "--workdir", tmp_path / "run", *arguments)
    for word in words:
        assert word in said
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_exists_is_refused(tmp_path):
    with pytest.raises(UserError, match="exists"):
        import_run(GOLDEN, tmp_path, tiny_config("joint"))
