"""Agreement with the released PyTorch model: every array of every golden folder, at the tolerances of its README.

More folders can be named in the environment variable COLAJAX_GOLDEN, separated by ':'.
"""

import dataclasses
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from colajax.hf import layout, names
from colajax.models.layers import Functional
from colajax.sampling.cola import Sampler
from colajax.sampling.settings import SamplingSettings

FOLDERS = sorted(path for path in (pathlib.Path(__file__).parent / "golden").iterdir() if path.is_dir())
FOLDERS += [pathlib.Path(path) for path in os.environ.get("COLAJAX_GOLDEN", "").split(":") if path]


class Arrays:
    """The arrays of one outputs.npz, and which of them were asked for."""

    def __init__(self, path):
        self._file = np.load(path)
        self.names = set(self._file.files)
        self.taken = set()

    def __getitem__(self, name):
        self.taken.add(name)
        return self._file[name]

    def numbered(self, kind: str) -> list[str]:
        """The groups "kind/0", "kind/1", ... that are there."""
        found = {match[0] for name in self.names if (match := re.match(rf"{kind}/\d+", name))}
        return sorted(found, key=lambda group: int(group.split("/")[1]))


def stack(arrays) -> tuple[np.ndarray, jnp.ndarray]:
    """Samples of unequal lengths as one batch, zeros after each, and their lengths."""
    lengths = [len(a) for a in arrays]
    batch = np.zeros((len(arrays), max(lengths), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, a in zip(batch, arrays, strict=True):
        row[: len(a)] = a
    return batch, jnp.array(lengths)


def close(actual, expected, where, *, atol=2e-4, rtol=0.0):
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, where
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=rtol, err_msg=where)


def check_vae(model, arrays):
    vae = Functional(layout.VAE.make, model.config)
    patch, groups = model.config.patch_size, arrays.numbered("vae")
    tokens, lengths = stack([arrays[f"{g}/tokens"] for g in groups])
    z, _ = stack([arrays[f"{g}/z"] for g in groups])

    @jax.jit
    def outputs(params, tokens, z, latents):
        module = vae.bind(params)
        return *module.encoder(tokens, latents), module.decoder(z, lengths=latents)[0]

    mean, logvar, logits = outputs(model.params, tokens, z, lengths // patch)
    assert (logvar is not None) == model.config.use_variation
    for i, g in enumerate(groups):
        latents = lengths[i] // patch
        close(mean[i, :latents], arrays[f"{g}/mean"], f"{g}/mean")
        close(logits[i, : lengths[i]], arrays[f"{g}/logits"], f"{g}/logits")
        if logvar is not None:
            close(logvar[i, :latents], arrays[f"{g}/logvar"], f"{g}/logvar")


def check_dit(model, arrays):
    dit, groups = Functional(layout.DIT.make, model.config), arrays.numbered("dit")
    z0, lengths = stack([arrays[f"{g}/z0"] for g in groups])
    zt, _ = stack([arrays[f"{g}/zt"] for g in groups])
    t, _ = stack([arrays[f"{g}/t"] for g in groups])
    time = t.max(1)
    assert ((t == 0) | (t == time[:, None])).all(), "a sample has two times, 0 and its own"

    @jax.jit
    def velocity(params, z, time, is_noisy):
        return dit.bind(params)(z, time, is_noisy, jnp.arange(z.shape[2]), lengths=lengths)[0]

    is_noisy = np.stack([np.zeros(t.shape, bool), t > 0], 1)
    v = velocity(model.params, np.stack([z0, zt], 1), time / 1000, is_noisy)
    for i, g in enumerate(groups):
        close(v[i, 0, : lengths[i]], arrays[f"{g}/velocity_clean"], f"{g}/velocity_clean")
        close(v[i, 1, : lengths[i]], arrays[f"{g}/velocity_noisy"], f"{g}/velocity_noisy")


def check_generation(vae, dit, arrays, folder):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    files = sorted(folder.glob("generation_*.json"))
    assert [f"gen/{path.stem.split('_')[1]}" for path in files] == arrays.numbered("gen")
    samplers = {}  # by pad token, so that generations share what is compiled
    for path in files:
        g, said = f"gen/{path.stem.split('_')[1]}", json.loads(path.read_text())
        assert said["temperature"] == 0
        pad = said["pad_token_id"]
        if pad not in samplers:
            samplers[pad] = Sampler(vae.config, dit.config, vae.params, dit.params, pad_id=pad, eos_id=None)
        sampler = samplers[pad]
        settings = SamplingSettings(
            max_new_tokens=said["max_new_tokens"], steps=said["timestep_num"], guidance=said["guidance_scale"],
            temperature=0, repetition_penalty=said["repetition_penalty"],
        )  # fmt: skip
        prompts = [tokenizer.encode(text).ids for text in said["prompts"]]
        noise, expected = arrays[f"{g}/noise"], arrays[f"{g}/block_logits"]
        # The released code counts blocks without the prompt's tokens in the first, and does not trim.
        assert len(noise) == -(-settings.max_new_tokens // sampler.block_tokens)
        logits, tokens = zip(*sampler.blocks(prompts, settings, len(noise), noise=noise), strict=True)
        close(np.stack(logits), expected, f"{g}/block_logits", atol=5e-4)
        given = []
        for i, prompt in enumerate(prompts):
            latents = -(-len(prompt) // vae.config.patch_size)
            prefix = latents // vae.config.block_size * sampler.block_tokens
            given.append(max(0, len(prompt) - prefix))
            generated = np.concatenate([block[i] for block in tokens])[given[i] :]
            assert tokenizer.decode(generated.tolist()) == said["generated"][i]
        # What users get is the same text, trimmed to one length.
        shortest = len(noise) * sampler.block_tokens - max(given)
        answers = sampler.generate(prompts, dataclasses.replace(settings, max_new_tokens=shortest), noise=noise)
        for answer, text in zip(answers, said["generated"], strict=True):
            assert tokenizer.decode(answer).split() == text.split()[:shortest]


def check_norms(kind, config, gradient, arrays, prefix):
    norms = {name: np.linalg.norm(g.astype(np.float64)) for name, g in names.to_hf(kind.names, gradient, config)}
    wanted = {name for name in arrays.names if name.startswith(prefix)}
    assert {prefix + name for name in norms} == wanted
    for name, norm in norms.items():
        close(norm, arrays[prefix + name], prefix + name, atol=0, rtol=1e-3)


def check_flow_gradient(model, arrays):
    dit = Functional(layout.DIT.make, model.config)
    z0, z1, t = arrays["dit/0/z0"], arrays["grad/fm/z1"], arrays["grad/fm/t"]

    def loss(params, z0):
        z = jnp.stack([jax.lax.stop_gradient(z0), (1 - t) * z0 + t * z1])[None]
        is_noisy = jnp.broadcast_to(jnp.array([False, True])[:, None], z.shape[1:3])[None]
        v, _ = dit.bind(params)(z, jnp.array([t]), is_noisy, jnp.arange(len(z0)))
        return jnp.mean((v[0, 1] - (z1 - z0)) ** 2)

    value, (by_params, by_z0) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(model.params, z0)
    close(value, arrays["grad/fm/loss"], "grad/fm/loss", atol=0, rtol=1e-3)
    close(by_z0, arrays["grad/fm/z0"], "grad/fm/z0")
    check_norms(layout.DIT, model.config, by_params, arrays, "grad/fm/norm/")


def check_reconstruction_gradient(model, arrays):
    vae = Functional(layout.VAE.make, model.config)
    tokens = arrays[f"vae/{arrays['grad/rec/sample']}/tokens"]
    tokens = np.where(tokens == model.config.mask_id, model.config.vocab_size - 1, tokens)[None]

    def loss(params):
        module = vae.bind(params)
        logits, _ = module.decoder(module.encoder(tokens)[0])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1))

    value, gradient = jax.jit(jax.value_and_grad(loss))(model.params)
    close(value, arrays["grad/rec/loss"], "grad/rec/loss", atol=0, rtol=1e-3)
    check_norms(layout.VAE, model.config, gradient, arrays, "grad/rec/norm/")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_agrees_with_the_released_model(folder):
    arrays = Arrays(folder / "outputs.npz")
    vae = layout.load(layout.VAE, folder / "cola_vae")
    dit = layout.load(layout.DIT, folder / "cola_dit")
    if arrays.numbered("vae"):
        check_vae(vae, arrays)
    if arrays.numbered("dit"):
        check_dit(dit, arrays)
    if arrays.numbered("gen"):
        check_generation(vae, dit, arrays, folder)
    if "grad/fm/loss" in arrays.names:
        check_flow_gradient(dit, arrays)
    if "grad/rec/loss" in arrays.names:
        check_reconstruction_gradient(vae, arrays)
    assert arrays.names == arrays.taken, "every array must be compared by some check"
