"""Import, export and the exported PyTorch classes: bytes, goldens, parity, and folders that are whole or not there."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import types

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from exports import FOLDERS, GOLDEN, SETTINGS, config_of, load
from tiny_runs import changed_arrays

from colajax.data.tokenizer import load_tokenizer
from colajax.errors import UserError
from colajax.evals.export_parity import CERTIFICATE, verify
from colajax.hf import layout
from colajax.hf.export import export
from colajax.hf.import_run import import_run
from colajax.hf.model_card import Stated
from colajax.sampling.load import load_run, run_tokenizer


@pytest.mark.parametrize("name", FOLDERS)
def test_there_and_back_gives_the_same_files(exported, name):
    hf = exported[name][1]
    for kind in layout.KINDS["joint"].values():
        ours, theirs = hf / kind.folder, GOLDEN / name / kind.folder
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        config = json.loads((ours / "config.json").read_text())
        assert set(config.pop("auto_map")) == {"AutoConfig", "AutoModel"}
        assert config == json.loads((theirs / "config.json").read_text())
    assert (hf / "tokenizer.json").read_bytes() == (GOLDEN / name / "tokenizer.json").read_bytes()
    certificate = json.loads((hf / CERTIFICATE).read_text())
    assert certificate["passed"]
    assert certificate["step"] == 3
    assert len(certificate["differences"]) == 8
    assert max(certificate["differences"].values()) <= 1e-4


def test_bfloat16_there_and_back(exported, tmp_path):
    run = exported["released_shape"][0]
    export(run, tmp_path / "hf", run_tokenizer(run), SETTINGS, dtype="bfloat16")
    assert verify(run, tmp_path / "hf")[0].largest == 0
    model = load(tmp_path / "hf")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert len(model.generate([[1, 2, 3]], max_new_tokens=5)[0]) == 5
    import_run(tmp_path / "hf", tmp_path / "run", config_of("joint"))
    export(tmp_path / "run", tmp_path / "again", run_tokenizer(run), SETTINGS, dtype="bfloat16")
    for kind in layout.KINDS["joint"].values():
        file = pathlib.Path(kind.folder) / "model.safetensors"
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "hf" / file).read_bytes()


def test_a_vae_alone(exported, tmp_path):
    shutil.copytree(GOLDEN / "patch2" / "cola_vae", tmp_path / "hf" / "cola_vae")
    shutil.copy(GOLDEN / "patch2" / "tokenizer.json", tmp_path / "hf")
    import_run(tmp_path / "hf", tmp_path / "run", config_of("vae"))
    run, out = tmp_path / "run", tmp_path / "out"
    export(run, out, run_tokenizer(run), SETTINGS, check=lambda folder: verify(run, folder))
    assert not (out / "cola_dit").exists()
    assert not (out / "config.json").exists()
    assert len(json.loads((out / CERTIFICATE).read_text())["differences"]) == 4


def test_verify_sees_a_changed_tensor_and_another_run(exported, tmp_path):
    run, hf = exported["released_shape"]
    copy = pathlib.Path(shutil.copytree(hf, tmp_path / "hf"))
    file = copy / "cola_dit" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="tensors that differ from the manifest"):
        verify(run, copy)
    assert not json.loads((copy / CERTIFICATE).read_text())["passed"]
    other = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    with changed_arrays(other) as params:
        head = params["dit"]["head"]["bias"]
        head[0] = np.asarray(head)[0] + np.float32(1e-3)
    with pytest.raises(UserError, match="velocity"):
        verify(other, hf)


def test_rounding_that_a_run_magnifies_is_allowed_and_another_sampler_is_not(exported, tmp_path):
    """Sharp attention makes a flow that turns on its last digits."""
    run, hf = tmp_path / "run", tmp_path / "magnifying"
    shutil.copytree(exported["released_shape"][0], run)
    with changed_arrays(run) as params:
        scale = params["dit"]["blocks"]["q_norm"]["scale"]
        scale[...] = 30 * np.asarray(scale)
    export(run, hf, run_tokenizer(run), SETTINGS, check=lambda folder: verify(run, folder, tolerance=2e-4))
    certificate = json.loads((hf / CERTIFICATE).read_text())
    found, explained = certificate["differences"]["generation: logits"], certificate["rounding"]["generation: logits"]
    assert 2e-4 < found < explained <= 1e-2
    code = hf / "generation_cola.py"
    code.write_text(code.read_text().replace("z - v / steps", "z - 0.9 * v / steps"))
    with pytest.raises(UserError, match="generation: logits"):
        verify(run, hf, tolerance=2e-4)


def test_an_export_in_shards_is_loaded_by_both(exported, tmp_path, monkeypatch):
    run, whole = exported["patch2"]
    monkeypatch.setattr(layout.save, "__kwdefaults__", {**layout.save.__kwdefaults__, "shard_bytes": 40_000})
    export(run, tmp_path / "hf", run_tokenizer(run), SETTINGS)
    assert len(list((tmp_path / "hf" / "cola_dit").glob("*.safetensors"))) > 2
    tensors = load(tmp_path / "hf").state_dict()
    for name, tensor in load(whole).state_dict().items():
        assert torch.equal(tensors[name], tensor), name
    import_run(tmp_path / "hf", tmp_path / "run", config_of("joint"))
    export(tmp_path / "run", tmp_path / "again", run_tokenizer(run), SETTINGS)
    read = lambda f: json.loads((f / "manifest.json").read_text())["sha256"]  # noqa: E731
    assert read(tmp_path / "again") == read(whole)


@pytest.mark.parametrize("moment", ["first tensor", "last tensor", "before the name"])
def test_killed_it_leaves_nothing_under_the_name_and_the_next_one_cleans_up(exported, tmp_path, moment):
    run, out = exported["released_shape"][0], tmp_path / "hf"
    script = f"""
import os, signal, types
from colajax.hf import export, shards
from colajax.sampling.load import load_run, run_tokenizer
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
check = die if {moment!r} == "before the name" else None
sha256, count = shards.hashlib.sha256, [0]
def counted(data):
    count[0] += 1
    if {moment!r} == {{1: "first tensor", 144: "last tensor"}}.get(count[0]):
        die()
    return sha256(data)
shards.hashlib = types.SimpleNamespace(sha256=counted)
export.export({str(run)!r}, {str(out)!r}, run_tokenizer({str(run)!r}), {{}}, check=check)
"""
    assert len(json.loads((exported["released_shape"][1] / "manifest.json").read_text())["sha256"]) == 144
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.glob("hf.tmp-*"))) == 1
    alive = tmp_path / f"hf.tmp-{os.getppid()}"
    alive.mkdir()
    export(run, out, run_tokenizer(run), SETTINGS)
    assert sorted(tmp_path.iterdir()) == [out, alive]


def test_a_failed_check_leaves_nothing(exported, tmp_path):
    def refuse(folder):
        assert (folder / "manifest.json").exists()
        raise UserError("no")

    run = exported["released_shape"][0]
    with pytest.raises(UserError, match=r"^no$"):
        export(run, tmp_path / "hf", run_tokenizer(run), SETTINGS, check=refuse)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="exists"):
        export(run, tmp_path, run_tokenizer(run), SETTINGS)
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        export(run, tmp_path / "hf", run_tokenizer(run), SETTINGS, step=7)


def test_a_folder_without_a_manifest_is_named(exported):
    with pytest.raises(UserError, match=re.escape("manifest.json")):
        verify(exported["released_shape"][0], GOLDEN / "released_shape")


def test_the_tokenizer_that_transformers_loads_gives_the_same_ids(records, exported, tmp_path):
    run = pathlib.Path(shutil.copytree(exported["released_shape"][0], tmp_path / "run"))
    (run / "tokenizer.json").unlink()
    shutil.copy(records / "tokenizer.model", run)
    ours = load_tokenizer(run / "tokenizer.model")
    export(run, tmp_path / "hf", ours, SETTINGS)
    theirs = transformers.AutoTokenizer.from_pretrained(
        str(tmp_path / "hf"), trust_remote_code=True, local_files_only=True
    )
    for text in ("Anna lived near the hill. ", " <pad></s>", "  two\n\nlines\t é\u2581🙂", ""):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text
    assert (theirs.pad_token_id, theirs.eos_token_id) == (ours.pad_id, ours.eos_id)


def test_the_program_on_the_card_prints_each_prompt_with_its_continuation(things, capsys, monkeypatch):
    """With known answers."""
    answer = load_tokenizer(things / "hf" / "tokenizer.model").encode(" Anna lived near the hill.")
    model = types.SimpleNamespace(generate=lambda inputs, max_new_tokens: [answer for _ in inputs])
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda *_, **__: model)
    program = re.search(r"```python\n(.*?)```", (things / "hf" / "README.md").read_text(), re.DOTALL)[1]
    exec(program.replace("PATH_OF_THIS_FOLDER", str(things / "hf")), {})
    prompts = ("Once upon a time", "The weather today")
    assert capsys.readouterr().out == "".join(f"{prompt} Anna lived near the hill.\n" for prompt in prompts)


def test_other_servers_find_the_parts_and_the_hub_reads_the_card(exported, tmp_path):
    """The parts by a scan of the child folders; the card's metadata by huggingface_hub."""
    run, hf = exported["released_shape"][0], tmp_path / "hf"
    stated = Stated("apache-2.0", ["en", "no"], ["owner/corpus"], "owner/name")  # YAML takes a bare no for false
    export(run, hf, run_tokenizer(run), SETTINGS, stated=stated)
    found = {}
    for child in hf.iterdir():
        if (child / "config.json").is_file() and list(child.glob("*.safetensors")):
            found[json.loads((child / "config.json").read_text())["model_type"]] = child.name
    assert found == {kind.model_type: kind.folder for kind in layout.KINDS["joint"].values()}
    card = huggingface_hub.ModelCard.load(hf / "README.md").data
    assert (card.license, card.language, card.datasets, card.base_model) == tuple(stated)
    assert (card.pipeline_tag, card.library_name) == ("text-generation", "transformers")
    plain = huggingface_hub.ModelCard.load(exported["released_shape"][1] / "README.md")
    assert plain.data.license is None
    assert "https://arxiv.org/abs/2605.06548" in plain.text


def test_parameters_that_are_not_finite_are_refused(exported, tmp_path):
    run = pathlib.Path(shutil.copytree(exported["released_shape"][0], tmp_path / "run"))
    with changed_arrays(run) as params:
        params["dit"]["head"]["bias"][0] = np.float32("nan")
    with pytest.raises(UserError, match=r"run: step 3 .*txt_out\.proj\.bias holds NaN"):
        export(run, tmp_path / "hf", run_tokenizer(run), SETTINGS)
    with pytest.raises(UserError, match="run: step 3 holds NaN"):
        load_run(run)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_that_cannot_be_written_is_named_first(exported, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written.*hf"):
        export(exported["released_shape"][0], tmp_path / "file" / "hf", None, SETTINGS)
    with pytest.raises(OSError, match=r"cannot be written.*run"):
        import_run(GOLDEN / "released_shape", tmp_path / "file" / "run", config_of("joint"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
