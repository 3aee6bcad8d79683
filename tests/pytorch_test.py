"""The exported PyTorch classes: against the goldens, against numpy with every option, and as a user calls them."""

import json
import re

import numpy as np
import numpy_reference as reference
import pytest
import tiny_models
import tokenizers
import torch
import transformers
from exports import FOLDERS, GOLDEN, SETTINGS, load
from options_test import OPTIONS, PAD

from colajax.hf import layout
from colajax.hf.pytorch.configuration_cola import ColaConfig, ColaDiTConfig, ColaTextVAEConfig
from colajax.hf.pytorch.modeling_cola import ColaModel
from colajax.hf.pytorch.modeling_cola_dit import ColaDiTModel
from colajax.hf.pytorch.modeling_cola_text_vae import ColaTextVAEModel


@pytest.mark.parametrize("name", FOLDERS)
def test_the_exported_classes_agree_with_the_goldens(exported, name):
    arrays = np.load(GOLDEN / name / "outputs.npz")
    model = load(exported[name][1])
    tensor = lambda key: torch.from_numpy(arrays[key])[None]  # noqa: E731

    def close(actual, key, atol=2e-4):
        np.testing.assert_allclose(actual[0].numpy(), arrays[key], atol=atol, rtol=0, err_msg=key)

    with torch.no_grad():
        for group in sorted({match[0] for key in arrays.files if (match := re.match(r"vae/\d+", key))}):
            mean, logvar = model.vae.encode(tensor(f"{group}/tokens"))
            close(mean, f"{group}/mean")
            close(logvar, f"{group}/logvar")
            close(model.vae.decode(tensor(f"{group}/z")), f"{group}/logits")
        for group in sorted({match[0] for key in arrays.files if (match := re.match(r"dit/\d+", key))}):
            clean, noisy = model.dit.two_copies(*(tensor(f"{group}/{key}") for key in ("z0", "zt", "t")))
            close(clean, f"{group}/velocity_clean")
            close(noisy, f"{group}/velocity_noisy")
    tokenizer = tokenizers.Tokenizer.from_file(str(exported[name][1] / "tokenizer.json"))
    for path in sorted((GOLDEN / name).glob("generation_*.json")):
        said, noise = json.loads(path.read_text()), arrays[f"gen/{path.stem[-1]}/noise"]
        assert model.config.pad_token_id == said["pad_token_id"]
        prompts = [tokenizer.encode(text).ids for text in said["prompts"]]
        settings = {"steps": said["timestep_num"], "guidance": said["guidance_scale"], "temperature": 0.0,
                    "repetition_penalty": said["repetition_penalty"]}  # fmt: skip
        every = model.settings(**settings)
        del every["max_new_tokens"]
        logits, tokens = zip(*model.generate_blocks(prompts, len(noise), noise=noise, **every), strict=True)
        np.testing.assert_allclose(torch.stack(logits).numpy(), arrays[f"gen/{path.stem[-1]}/block_logits"], atol=5e-4)
        given = [model._prompt_tokens_in_first_block(len(prompt)) for prompt in prompts]
        for i, text in enumerate(said["generated"]):
            assert tokenizer.decode(torch.cat([block[i] for block in tokens])[given[i] :].tolist()) == text
        shortest = len(noise) * model.block_tokens - max(given)
        answers = model.generate(prompts, noise=noise, max_new_tokens=shortest, **settings)
        assert [tokenizer.decode(a).split() for a in answers] == [t.split()[:shortest] for t in said["generated"]]


def test_parts_load_alone_and_the_whole_saves_itself_again(exported, tmp_path):
    hf = exported["patch2"][1]
    model = load(hf)
    for kind in layout.KINDS["joint"].values():
        part, loading = load(hf / kind.folder, output_loading_info=True)
        assert type(part).__name__ == kind.architecture
        assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    prompts = [[1, 2, 3], [4] * 11]
    assert model.generation_config.max_new_tokens == SETTINGS["max_new_tokens"]
    assert again.generate(prompts, seed=5) == model.generate(prompts, seed=5)


def test_samples_do_not_hang_on_their_batch_and_padding_is_no_prompt(exported):
    model, drawn = load(exported["released_shape"][1]), {"temperature": 1.5, "top_p": 0.95, "seed": 2, "guidance": 2.0}
    prompts = [[5, 6, 7], [1] * 9, []]
    together = model.generate(prompts, max_new_tokens=7, **drawn)
    assert [len(answer) for answer in together] == [7, 7, 7]
    assert model.generate(prompts[:1], max_new_tokens=7, **drawn) == together[:1]
    assert model.generate(prompts[:2], max_new_tokens=7, **drawn) == together[:2]
    padded = torch.tensor([[0, 0, 0, 0, 0, 0, *prompts[0]], prompts[1]])
    mask = torch.tensor([[0] * 6 + [1] * 3, [1] * 9])
    assert model.generate(padded, mask, max_new_tokens=7, **drawn) == together[:2]
    model.config.eos_token_id = together[0][3]
    ended = model.generate(prompts[:1], max_new_tokens=7, **drawn)[0]
    assert ended == together[0][: together[0].index(together[0][3])]
    with pytest.raises(ValueError, match="temprature"):
        model.generate(prompts, temprature=1)


def test_released_names_of_settings_mean_the_same_and_ids_without_text_are_never_sampled(exported):
    model, prompts = load(exported["released_shape"][1]), [[5, 6, 7], []]
    ours = model.generate(prompts, steps=3, guidance=2.0, temperature=2.0)
    assert model.generate(prompts, timestep_num=3, guidance_scale=2.0, temperature=2.0) == ours
    assert model.generate(prompts, diffusion_steps=3, guidance_scale=2.0, temperature=2.0) == ours
    with pytest.raises(ValueError, match="guidance_scale"):
        model.generate(prompts, guidance=1.0, guidance_scale=2.0)
    tokenizer = tokenizers.Tokenizer.from_file(str(exported["released_shape"][1] / "tokenizer.json"))
    assert model.config.token_count == max(tokenizer.get_vocab().values()) + 1
    model.config.token_count = max(token for answer in ours for token in answer)
    for temperature in (0.0, 2.0):
        fewer = model.generate(prompts, max_new_tokens=20, steps=2, temperature=temperature, top_k=0, top_p=1.0)
        assert max(token for answer in fewer for token in answer) < model.config.token_count
    model.generation_config = transformers.GenerationConfig(guidance_scale=2.5, timestep_num=5)
    assert (model.settings()["guidance"], model.settings(steps=6)["steps"]) == (2.5, 6)
    assert model.settings()["steps"] == 5


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_agrees_with_numpy(options, tmp_path):
    parts, slow = [], []
    for kind, config, part in zip(
        (layout.VAE, layout.DIT), tiny_models.with_options(*options), (ColaTextVAEModel, ColaDiTModel), strict=True
    ):
        folder = tmp_path / kind.folder
        layout.save(kind, config, tiny_models.random_params(kind, config), folder)
        parts.append(part.from_pretrained(folder).eval())
        slow.append((json.loads((folder / "config.json").read_text()), reference.read(folder)))
    model = ColaModel(ColaConfig(pad_token_id=PAD, eos_token_id=None), *parts)
    (c, w), size, patch = slow[0], model.dit.config.block_size, model.vae.config.patch_size
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, c["vocab_size"] + 1, (1, 3 * size * patch))
    z = rng.standard_normal((1, 3 * size, c["latent_dim"])).astype(np.float32)
    with torch.no_grad():
        mean, logvar = model.vae.encode(torch.from_numpy(tokens))
        logits = model.vae.decode(torch.from_numpy(z))
    slow_mean, slow_logvar = reference.encode(c, w, tokens[0])
    np.testing.assert_allclose(mean[0], slow_mean, atol=1e-4)
    np.testing.assert_allclose(logits[0], reference.decode(c, w, z[0]), atol=1e-4)
    assert (logvar is None) == (slow_logvar is None)
    if logvar is not None:
        np.testing.assert_allclose(logvar[0], slow_logvar, atol=1e-4)
    prompts = [rng.integers(0, PAD, n).tolist() for n in (0, max(1, size * patch // 2), 2 * size * patch - 1)]
    noise = rng.standard_normal((2, len(prompts), size, c["latent_dim"])).astype(np.float32)
    settings = model.settings(steps=3, guidance=2.5, temperature=0.0, repetition_penalty=1.2)
    del settings["max_new_tokens"]
    blocks = list(model.generate_blocks(prompts, 2, noise=noise, **settings))
    for i, prompt in enumerate(prompts):
        slow_logits, slow_tokens = reference.generate(
            *slow, prompt, noise[:, i], steps=3, guidance=2.5, pad=PAD, penalty=1.2
        )
        np.testing.assert_allclose([logits[i] for logits, _ in blocks], slow_logits, atol=2e-4)
        assert [tokens[i].tolist() for _, tokens in blocks] == slow_tokens


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [(ColaTextVAEConfig, "act", "relu"), (ColaTextVAEConfig, "dropout", 0.1), (ColaDiTConfig, "patch_size", 2)],
)
def test_a_value_without_an_implementation_is_named(config, key, value):
    with pytest.raises(ValueError, match=key):
        config(**{key: value})
