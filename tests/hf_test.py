"""The released layout: byte for byte through colajax and back, shards, and files that do not fit."""

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_models

from colajax.errors import UserError
from colajax.hf import layout, shards

GOLDEN = pathlib.Path(__file__).parent / "golden"
MODELS = [(folder, kind) for folder in ("released_shape", "patch2") for kind in (layout.VAE, layout.DIT)]
both = pytest.mark.parametrize(("folder", "kind"), MODELS, ids=lambda x: getattr(x, "folder", x))


def files_of(folder):
    return json.loads((folder / "config.json").read_text()), safetensors.numpy.load_file(folder / "model.safetensors")


def assert_same_bytes(found: dict, expected: dict):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), name


@both
def test_there_and_back_changes_no_byte(folder, kind, tmp_path):
    model = layout.load(kind, GOLDEN / folder / kind.folder)
    on_device = jax.tree.map(jnp.asarray, model.params)
    layout.save(kind, model.config, on_device, tmp_path / "out", found=model.json, tables=model.tables)
    config, tensors = files_of(tmp_path / "out")
    released_config, released = files_of(GOLDEN / folder / kind.folder)
    assert config == released_config
    assert_same_bytes(tensors, released)
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


@both
def test_a_model_of_ours_has_every_released_key_and_tensor(folder, kind):
    model = layout.load(kind, GOLDEN / folder / kind.folder)
    released_config, released = files_of(GOLDEN / folder / kind.folder)
    ours = layout.config_json(kind, model.config, "float32")
    released_config.pop("transformers_version")  # of the library that wrote it
    assert ours == released_config
    assert_same_bytes(dict(layout.tensors(kind, model.config, model.params)), released)


def test_rotary_tables_pass_through_as_found(tmp_path):
    folder = copied(tmp_path, layout.DIT)
    _, tensors = files_of(folder)
    name = "blocks.1.msa.rope.rope.freqs"
    tensors[name] = np.nextafter(tensors[name], np.float32(2))
    rewrite(folder, tensors)
    model = layout.load(layout.DIT, folder)
    layout.save(layout.DIT, model.config, model.params, tmp_path / "out", found=model.json, tables=model.tables)
    assert_same_bytes(files_of(tmp_path / "out")[1], tensors)


@both
def test_shards_give_the_same(folder, kind, tmp_path):
    released = GOLDEN / folder / kind.folder
    _, tensors = files_of(released)
    weight_map = {name: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, name in enumerate(sorted(tensors))}
    shutil.copy(released / "config.json", tmp_path)
    for file in set(weight_map.values()):
        shard = {name: tensors[name] for name in tensors if weight_map[name] == file}
        safetensors.numpy.save_file(shard, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    whole, sharded = layout.load(kind, released), layout.load(kind, tmp_path)
    assert sharded.config == whole.config
    jax.tree.map(np.testing.assert_array_equal, sharded.params, whole.params)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=file):
        layout.load(kind, tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_the_rounded_model(dtype, tmp_path):
    for kind, config in ((layout.VAE, tiny_models.VAE), (layout.DIT, tiny_models.DIT)):
        params = tiny_models.random_params(kind, config)
        layout.save(kind, config, params, tmp_path / kind.folder, dtype=dtype)
        model = layout.load(kind, tmp_path / kind.folder)
        assert model.config == config
        assert model.json["dtype"] == dtype
        rounded = jax.tree.map(lambda x: x.astype(shards.DTYPES[dtype]).astype(np.float32), params)
        jax.tree.map(np.testing.assert_array_equal, model.params, rounded)


def test_save_refuses_a_folder_that_exists(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        layout.save(layout.VAE, tiny_models.VAE, tiny_models.random_params(layout.VAE, tiny_models.VAE), tmp_path)


def copied(tmp_path, kind):
    return pathlib.Path(shutil.copytree(GOLDEN / "released_shape" / kind.folder, tmp_path / "copy"))


def rewrite(folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def without(tensors, name):
    del tensors[name]


def with_extra(tensors, name):
    tensors[name] = np.zeros(3, np.float32)


def with_another_shape(tensors, name):
    tensors[name] = tensors[name][:-1].copy()


@pytest.mark.parametrize(
    ("kind", "change", "name", "problem"),
    [
        (layout.VAE, without, "decoder.blocks.1.q_norm.bias", "missing"),
        (layout.DIT, without, "blocks.2.ada.msa_out.1.weight", "missing"),
        (layout.VAE, with_extra, "encoder.blocks.2.ffn_out.bias", "unexpected"),
        (layout.DIT, with_extra, "txt_in.proj.scale", "unexpected"),
        (layout.VAE, with_another_shape, "encoder.wte.weight", "wrong shape"),
        (layout.DIT, with_another_shape, "txt_out.proj.bias", "wrong shape"),
        (layout.DIT, with_another_shape, "blocks.0.msa.rope.rope.freqs", "is not the rotary table"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, kind, change, name, problem):
    folder = copied(tmp_path, kind)
    _, tensors = files_of(folder)
    change(tensors, name)
    rewrite(folder, tensors)
    with pytest.raises(UserError) as error:
        layout.load(kind, folder)
    assert problem in str(error.value)
    assert name in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (layout.VAE, {"latent_dims": 8}, ["latent_dims", "did you mean latent_dim?"]),
        (layout.DIT, {"num_layer": 3}, ["num_layer", "did you mean num_layers?"]),
        (layout.VAE, {"shared_heads_kv": 2}, ["shared_heads_kv", "2"]),
        (layout.VAE, {"layer_norm_type": "rms"}, ["layer_norm_type", "rms"]),
        (layout.VAE, {"dropout": 0.1}, ["dropout", "0.1"]),
        (layout.VAE, {"attn_dropout": 0.1}, ["attn_dropout", "0.1"]),
        (layout.VAE, {"act": "relu"}, ["act", "relu"]),
        (layout.DIT, {"patch_size": 2}, ["patch_size", "2"]),
        (layout.DIT, {"txt_out_channels": 4}, ["txt_out_channels", "4"]),
        (layout.VAE, {"dim": "32"}, ["dim", "expected int"]),
        (layout.VAE, {"model_type": "cola_dit"}, ["model_type", "cola_text_vae"]),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path, kind, changes, words):
    folder = copied(tmp_path, kind)
    config, _ = files_of(folder)
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError) as error:
        layout.load(kind, folder)
    for word in [*words, str(folder / "config.json")]:
        assert word in str(error.value)


def test_keys_that_change_nothing_are_kept(tmp_path):
    folder = copied(tmp_path, layout.VAE)
    config, _ = files_of(folder)
    kept = {"init_std": 0.5, "causal": True, "use_emb": False, "transformers_version": "9.9"}
    (folder / "config.json").write_text(json.dumps(config | kept))
    model = layout.load(layout.VAE, folder)
    written = layout.config_json(layout.VAE, model.config, "float32", model.json)
    assert written == config | kept


def test_a_config_without_block_size_has_the_released_class_default(tmp_path):
    folder = copied(tmp_path, layout.VAE)
    config, _ = files_of(folder)
    del config["block_size"]
    (folder / "config.json").write_text(json.dumps(config))
    assert layout.load(layout.VAE, folder).config == dataclasses.replace(
        layout.load(layout.VAE, GOLDEN / "released_shape" / "cola_vae").config, block_size=4
    )


@pytest.mark.parametrize(
    ("file", "damage"),
    [("model.safetensors", lambda data: data[:-100]), ("model.safetensors", lambda data: data[:5]),
     ("config.json", lambda data: data[:-20])],
)  # fmt: skip
def test_a_cut_file_is_named(tmp_path, file, damage):
    path = copied(tmp_path, layout.VAE) / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=re.escape(str(path))):
        layout.load(layout.VAE, path.parent)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_there_is_named(tmp_path, file):
    folder = copied(tmp_path, layout.VAE)
    (folder / file).unlink()
    with pytest.raises(UserError, match=re.escape(file)):
        layout.load(layout.VAE, folder)
