"""Small random models for tests: configurations, and parameters of which none is zero or left at its start."""

import dataclasses

import jax
import numpy as np

from colajax.hf import layout
from colajax.models.config import DiTConfig, LlamaConfig, VAEConfig
from colajax.models.layers import Functional

VAE = VAEConfig(
    vocab_size=40, dim=16, ffn_dim=24, num_heads=2, encoder_num_blocks=2, decoder_num_blocks=2, latent_dim=4,
    block_size=4,
)  # fmt: skip
DIT = DiTConfig(
    txt_in_channels=4, txt_out_channels=4, txt_dim=16, emb_dim=12, heads=2, head_dim=8, expand_ratio=2, num_layers=2,
    rope_dim=4, block_size=4,
)  # fmt: skip
LLAMA = LlamaConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, rms_norm_eps=1e-5,
    rope_theta=10000.0,
)  # fmt: skip


def random_sampler(family, **others):
    """A sampler of one of the families, of the small configurations, with random parameters; the rest as its class."""
    configs = {group: {"vae": VAE, "dit": DIT, "llama": LLAMA}[group] for group in family.CONFIGS}
    shapes = {group: model.shapes() for group, model in family.models(configs).items()}
    params = {group: random_tree(tree, 7) for group, tree in shapes.items()}
    return family.of(configs, params, **others)


def random_params(kind: layout.Kind, config, seed: int = 0) -> dict:
    """Numpy float32 parameters of an exported module."""
    return random_tree(Functional(kind.make, config).shapes(), seed)


def random_tree(shapes: dict, seed: int = 0) -> dict:
    """Numpy float32 parameters; kernels keep the variance of their input, modulations are small but not zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        names = [key.key for key in path]
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        if names[-1] == "kernel":
            modulation = names[-2] == "linear"
            return x * np.float32((0.3 if modulation else 1.0) / np.sqrt(leaf.shape[-2]))
        gate = names[-2] == "linear" and names[-3].endswith("_out")
        return x if names[-1] == "embedding" else x * np.float32(0.2) + np.float32(names[-1] == "scale" or gate)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def with_options(vae: dict, dit: dict) -> tuple[VAEConfig, DiTConfig]:
    """The two small configurations with other values for some keys."""
    return dataclasses.replace(VAE, **vae), dataclasses.replace(DIT, **dit)
