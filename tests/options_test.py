"""Every supported option of the two models, from a written checkpoint to generated blocks, against numpy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
import tiny_models

from colajax.hf import layout
from colajax.models.layers import Functional
from colajax.sampling.cola import Sampler
from colajax.sampling.settings import SamplingSettings

# (VAE keys, DiT keys): every option that changes the computation is in at least one row, away from the released value.
OPTIONS = {
    "pre-norm, gelu, no biases": ({"post_norm": False, "act": "gelu", "bias": False}, {"heads": 1, "head_dim": 16}),
    "silu, no qk norm, clipped": ({"act": "silu", "qk_norm": False, "clip_qkv": 0.5}, {"qk_bias": True, "rope_dim": 8}),
    "not block-causal, patch 2": ({"block_causal": False, "patch_size": 2}, {"rope_dim": 2}),
    "block 1, no variance": ({"block_size": 1, "use_variation": False}, {"block_size": 1, "num_layers": 1}),
    "causal VAE under a prior of larger blocks": ({"block_size": 1}, {"num_layers": 1}),
    "VAE of half the prior's block, patch 2": ({"block_size": 2, "patch_size": 2}, {"num_layers": 1}),
    "block 3, patch 3, fewer norms": (
        {
            "block_size": 3, "patch_size": 3, "layer_norm_affine": False, "qk_norm_affine": False,
            "encoder_last_ln": False,
        },
        {"block_size": 3, "rope_dim": 0, "expand_ratio": 3},
    ),
    "biased q and k, no post-norm affine, scaled latents": (
        {
            "qk_bias": True, "post_norm": False, "layer_norm_affine": False, "num_heads": 4, "decoder_num_blocks": 1,
            "rope_theta": 100.0, "layer_norm_eps": 1e-3, "scaling_factor": 0.7, "shifting_factor": 0.1,
            "rope_full_precision": False,
        },
        {"norm_eps": 1e-2, "txt_dim": 24, "emb_dim": 20},
    ),
}  # fmt: skip
PAD = 39


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda name: name.replace(", ", "/").replace(" ", "-"))
def written(request, tmp_path_factory):
    """(VAE as loaded, DiT as loaded, and both for the reference: config.json and tensors)."""
    folder = tmp_path_factory.mktemp("model")
    for kind, config in zip((layout.VAE, layout.DIT), tiny_models.with_options(*OPTIONS[request.param]), strict=True):
        layout.save(kind, config, tiny_models.random_params(kind, config), folder / kind.folder)
    loaded = [layout.load(kind, folder / kind.folder) for kind in (layout.VAE, layout.DIT)]
    slow = [
        (json.loads((folder / kind.folder / "config.json").read_text()), reference.read(folder / kind.folder))
        for kind in (layout.VAE, layout.DIT)
    ]
    return *loaded, *slow


def lengths_of_latents(block_size):
    """Shorter than a block, no multiple of it, and a multiple."""
    return [max(1, block_size - 1), 2 * block_size + 1, 3 * block_size]


def test_vae(written):
    model, _, (c, w), _ = written
    rng = np.random.default_rng(1)
    latents, patch = lengths_of_latents(model.config.block_size), model.config.patch_size
    tokens = rng.integers(0, model.config.mask_id + 1, (3, max(latents) * patch))
    z = rng.standard_normal((3, max(latents), model.config.latent_dim)).astype(np.float32)
    vae = Functional(layout.VAE.make, model.config)

    @jax.jit
    def outputs(params, tokens, z, lengths):
        module = vae.bind(params)
        return module.encoder(tokens, lengths), module.decoder(z, lengths=lengths)[0]

    (mean, logvar), logits = outputs(model.params, tokens, z, jnp.array(latents))
    for i, n in enumerate(latents):
        slow_mean, slow_logvar = reference.encode(c, w, tokens[i, : n * patch])
        np.testing.assert_allclose(mean[i, :n], slow_mean, atol=1e-4)
        np.testing.assert_allclose(logits[i, : n * patch], reference.decode(c, w, z[i, :n]), atol=1e-4)
        assert (logvar is None) == (slow_logvar is None)
        if logvar is not None:
            np.testing.assert_allclose(logvar[i, :n], slow_logvar, atol=1e-4)


def test_prior_on_two_copies(written):
    _, model, _, (c, w) = written
    rng = np.random.default_rng(2)
    latents = lengths_of_latents(model.config.block_size)
    z = rng.standard_normal((3, 2, max(latents), model.config.txt_in_channels)).astype(np.float32)
    times = np.array([0.9, 0.35, 0.02], np.float32)
    is_noisy = np.zeros(z.shape[:3], bool)
    is_noisy[:, 1] = True
    is_noisy[1, 1, : model.config.block_size // 2] = False
    dit = Functional(layout.DIT.make, model.config)
    positions = jnp.arange(max(latents))
    call = jax.jit(lambda params, z: dit.bind(params)(z, times, is_noisy, positions, lengths=jnp.array(latents))[0])
    velocity = call(model.params, z)
    for i, n in enumerate(latents):
        t = np.where(is_noisy[i, 1, :n], times[i], 0)
        clean, noisy = reference.dit_two_copies(c, w, z[i, 0, :n], z[i, 1, :n], t)
        np.testing.assert_allclose(velocity[i, 0, :n], clean, atol=1e-4)
        np.testing.assert_allclose(velocity[i, 1, :n], noisy, atol=1e-4)


def test_generation(written):
    vae, dit, slow_vae, slow_dit = written
    rng = np.random.default_rng(3)
    sampler = Sampler(vae.config, dit.config, vae.params, dit.params, pad_id=PAD, eos_id=None)
    size = sampler.block_tokens
    lengths = [0, 1, size - 1, size + 1, 2 * size]
    prompts = [rng.integers(0, PAD, length).tolist() for length in lengths]
    noise = rng.standard_normal((3, len(prompts), dit.config.block_size, vae.config.latent_dim)).astype(np.float32)
    settings = SamplingSettings(steps=3, guidance=2.5, temperature=0, repetition_penalty=1.3)
    logits, tokens = zip(*sampler.blocks(prompts, settings, 3, noise=noise), strict=True)
    for i, prompt in enumerate(prompts):
        slow_logits, slow_tokens = reference.generate(
            slow_vae, slow_dit, prompt, noise[:, i], steps=3, guidance=2.5, pad=PAD, penalty=1.3
        )
        np.testing.assert_allclose(np.stack(logits)[:, i], slow_logits, atol=3e-4)
        assert [block[i].tolist() for block in tokens] == slow_tokens
