"""The baselines' imports and exports against transformers: its LLaMA for AR, classes of ours for LLaDA."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_runs
import torch
import transformers
from exports import SETTINGS
from import_test import run_tool
from tiny_runs import changed_arrays

from colajax.errors import UserError
from colajax.evals.export_parity import CERTIFICATE, verify
from colajax.hf import layout
from colajax.hf.export import export
from colajax.hf.import_run import import_run
from colajax.sampling.load import load_run, run_tokenizer
from colajax.sampling.settings import SamplingSettings
from colajax.train.stored import open_arrays

each = pytest.mark.parametrize("stage", ["ar", "llada"])
PROMPTS = [[5, 6, 7, 8], [9], [11, 12] * 10]


def load(folder, auto, **options):
    return getattr(transformers, auto).from_pretrained(str(folder), local_files_only=True, **options)


def tensors_of(folder) -> dict:
    return safetensors.numpy.load_file(folder / "model.safetensors")


@each
def test_there_and_back_gives_the_same_tensors(baselines, stage):
    saved, _, hf = baselines[stage]
    theirs, ours = tensors_of(saved), tensors_of(hf)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)
    config = json.loads((hf / "config.json").read_text())
    assert config["max_position_embeddings" if stage == "ar" else "token_count"] == {"ar": 2048, "llada": 500}[stage]
    certificate = json.loads((hf / CERTIFICATE).read_text())
    assert (certificate["passed"], certificate["step"]) == (True, 3)
    assert certificate["differences"].keys() == {
        "tensors that differ from the manifest", "logits", "generation: tokens that differ"
    }  # fmt: skip
    assert max(certificate["differences"].values()) <= 1e-4


def test_transformers_llama_writes_our_greedy_text(baselines):
    """With no code of ours: AutoModelForCausalLM; each prompt alone, and in a batch padded on the left."""
    saved, run, hf = baselines["ar"]
    model, original = load(hf, "AutoModelForCausalLM"), load(saved, "AutoModelForCausalLM")
    tokens = torch.randint(0, 1024, (2, 20))
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, original(tokens).logits)
    ours = load_run(run).sampler.generate(PROMPTS, SamplingSettings(max_new_tokens=12, temperature=0.0))
    assert model.generation_config.max_new_tokens == SETTINGS["max_new_tokens"]
    longest = max(map(len, PROMPTS))
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    rows = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    for i, prompt in enumerate(PROMPTS):
        assert model.generate(torch.tensor([prompt]), max_new_tokens=12)[0, len(prompt) :].tolist() == ours[i]
    together = model.generate(rows, attention_mask=mask, max_new_tokens=12)[:, longest:].tolist()
    assert [new[: new.index(end)] if end in new else new for new in together] == ours
    assert max(token for answer in ours for token in answer) < run_tokenizer(run).vocab_size


@pytest.mark.parametrize(
    "settings",
    [{"steps": 12}, {"steps": 5, "guidance": 2.5, "repetition_penalty": 1.3}, {"steps": 6, "block_length": 4}],
)
def test_llada_classes_write_our_greedy_text(baselines, settings):
    _, run, hf = baselines["llada"]
    model = load(hf, "AutoModelForMaskedLM", trust_remote_code=True)
    settings = {"max_new_tokens": 12, "temperature": 0.0, "guidance": 1.0, **settings}
    prompts = [[], *PROMPTS]
    ours = load_run(run).sampler.generate(prompts, SamplingSettings(**settings))
    assert model.generate(prompts, **settings) == ours
    assert [model.generate([prompt], **settings)[0] for prompt in prompts] == ours


def test_llada_classes_as_a_user_calls_them(baselines, tmp_path):
    model = load(baselines["llada"][2], "AutoModel", trust_remote_code=True)
    drawn = {"temperature": 1.5, "top_p": 0.95, "seed": 2, "guidance": 2.0, "max_new_tokens": 6}
    together = model.generate(PROMPTS, **drawn)
    assert [len(answer) for answer in together] == [6, 6, 6]
    assert model.generate(PROMPTS[:1], **drawn) == together[:1]
    rows = torch.tensor([[0, 0, 0, *PROMPTS[1]], PROMPTS[0]])
    mask = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    assert model.generate(rows, mask, **{**drawn, "temperature": 0.0}) == model.generate(
        [PROMPTS[1], PROMPTS[0]], **{**drawn, "temperature": 0.0}
    )
    for wrong in ({"temprature": 1}, {"block_length": 5}, {"steps": 5, "block_length": 3}, {"steps": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model.generate(PROMPTS, **{**drawn, **wrong})
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", "AutoModel", trust_remote_code=True)
    assert again.generate(PROMPTS, **drawn) == together
    assert again.generation_config.max_new_tokens == SETTINGS["max_new_tokens"]


@each
def test_bfloat16_there_and_back(baselines, stage, tmp_path):
    _, run, _ = baselines[stage]
    export(run, tmp_path / "hf", run_tokenizer(run), SETTINGS, dtype="bfloat16")
    assert verify(run, tmp_path / "hf")[0].largest == 0
    import_run(tmp_path / "hf", tmp_path / "run", tiny_runs.tiny_config(stage))
    export(tmp_path / "run", tmp_path / "again", run_tokenizer(run), SETTINGS, dtype="bfloat16")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "hf" / file).read_bytes()


@each
def test_an_export_in_shards_is_loaded_by_both(baselines, stage, tmp_path, monkeypatch):
    _, run, hf = baselines[stage]
    monkeypatch.setattr(layout.save, "__kwdefaults__", {**layout.save.__kwdefaults__, "shard_bytes": 100_000})
    export(run, tmp_path / "hf", run_tokenizer(run), SETTINGS)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    auto = {"ar": "AutoModelForCausalLM", "llada": "AutoModelForMaskedLM"}[stage]
    whole, divided = (load(folder, auto, trust_remote_code=True).state_dict() for folder in (hf, tmp_path / "hf"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in divided.items())
    import_run(tmp_path / "hf", tmp_path / "run", tiny_runs.tiny_config(stage))
    ours, theirs = (open_arrays(folder)[1]["llama"] for folder in (run, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, ours), jax.tree.map(np.asarray, theirs))


@each
def test_verify_sees_a_changed_tensor_and_another_run(baselines, stage, tmp_path):
    _, run, hf = baselines[stage]
    shutil.copytree(hf, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="tensors that differ from the manifest"):
        verify(run, tmp_path / "hf")
    shutil.copytree(run, tmp_path / "run")
    with changed_arrays(tmp_path / "run") as params:
        norm = params["llama"]["norm"]["scale"]
        norm[0] = np.asarray(norm)[0] + np.float32(0.05)
    with pytest.raises(UserError, match="in logits"):
        verify(tmp_path / "run", hf)
    with changed_arrays(tmp_path / "run") as params:
        params["llama"]["norm"]["scale"][0] = np.float32("nan")
    with pytest.raises(UserError, match=r"run: step 3 .*model\.norm\.weight holds NaN"):
        export(tmp_path / "run", tmp_path / "out", run_tokenizer(run), SETTINGS)


@each
def test_the_program_on_the_card_runs(baselines, stage, tmp_path, capsys):
    hf = baselines[stage][2]
    card = (hf / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("max_new_tokens=32", "max_new_tokens=4")
    exec(program.replace("PATH_OF_THIS_FOLDER", str(hf)), {})
    printed = capsys.readouterr().out
    assert printed.index("Once upon a time") < printed.index("The weather today")
    assert f'"stage": "{stage}"' in card


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tie_word_embeddings": True}, ["tie_word_embeddings", "True"]),
        ({"num_key_value_heads": 1}, ["num_key_value_heads", "1", "2"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ["rope_scaling", "linear"]),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, ["rope_scaling", "llama3"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["rope_scaling", "dynamic"]),
        ({"rope_scaling": {"type": ["default"]}}, ["rope_scaling"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"head_dim": 8}, ["head_dim", "8", "16"]),
        ({"num_hidden_layers": 3}, ["missing", "model.layers.2."]),
        ({"vocab_size": 1000}, ["wrong shape", "lm_head.weight"]),
        ({"vocab_size": 400}, ["wrong shape", "lm_head.weight"]),
        ({"hidden_sise": 32}, ["hidden_sise", "hidden_size"]),
        ({"quantization_config": {}}, ["quantization_config"]),
        ({"model_type": ["llama"]}, ["model_type", "['llama']"]),
        ({"model_type": "mistral"}, ["model_type", "'mistral'", "'llama'", "cola_vae"]),
    ],
)
def test_a_llama_that_is_not_ours_is_one_line(baselines, changes, words, tmp_path, monkeypatch, capsys):
    shutil.copytree(baselines["ar"][0], tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    said = run_tool(monkeypatch, capsys, "--hf", tmp_path / "hf", "--workdir", tmp_path / "run")
    for word in [str(tmp_path / "hf"), *words]:
        assert word in said
    assert [file.name for file in tmp_path.iterdir()] == ["hf"]


def test_older_and_shorter_configurations_are_read(baselines, tmp_path):
    """rope_theta outside rope_parameters; what is left out is as in transformers."""
    shutil.copytree(baselines["ar"][0], tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("rope_parameters")["rope_theta"] == 10000.0
    for key in ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "attention_bias"):
        del config[key]
    path.write_text(json.dumps(config | {"rope_theta": 5e5, "rope_scaling": None}))
    import_run(tmp_path / "hf", tmp_path / "run", tiny_runs.tiny_config("ar"))
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (found["llama"]["rope_theta"], found["llama"]["rms_norm_eps"], found["compute_params"]) == (5e5, 1e-6, 0)
    export(tmp_path / "run", tmp_path / "out", run_tokenizer(tmp_path / "run"), SETTINGS)
    theirs, ours = (load(folder, "AutoModelForCausalLM") for folder in (tmp_path / "hf", tmp_path / "out"))
    tokens = torch.randint(0, 1024, (2, 20))
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, ours(tokens).logits)
