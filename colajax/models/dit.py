"""The prior: a block-causal diffusion transformer that predicts the velocity of latents."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from colajax.axes import by_sample, constrain
from colajax.models import layers
from colajax.models.attention import KVCache, block_causal_attention, cached_attention
from colajax.models.config import DiTConfig

ROPE_THETA = 10000.0
SINUSOID_DIM = 256
TIME_SCALE = 1000.0  # the network is fed t * 1000


class Embedding(NamedTuple):
    """The time of every position, float32: `clean` (1, E) of time 0, `noisy` (B, E) or (1, E); is_noisy (B, C, L)
    chooses."""

    clean: jax.Array
    noisy: jax.Array
    is_noisy: jax.Array


class TimeEmbedding(nnx.Module):
    """Times in 0..1 to embeddings: a sinusoid of 256 (sin, then cos), then three linear layers with SiLU between."""

    def __init__(self, config: DiTConfig, *, dtype, rngs: nnx.Rngs):
        make = dict(dtype=dtype, result=jnp.float32, rngs=rngs)
        self.proj_in = layers.Linear(SINUSOID_DIM, config.txt_dim, ("embed", "mlp"), **make)
        self.proj_hid = layers.Linear(config.txt_dim, config.txt_dim, ("embed", "mlp"), **make)
        self.proj_out = layers.Linear(config.txt_dim, config.emb_dim, ("embed", "mlp"), **make)

    def __call__(self, times_R):
        half = SINUSOID_DIM // 2
        frequencies = np.exp(-math.log(10000.0) * np.arange(half, dtype=np.float32) / np.float32(half))
        angles = (times_R.astype(jnp.float32) * TIME_SCALE)[:, None] * frequencies
        x = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        for linear in (self.proj_in, self.proj_hid):
            x = jax.nn.silu(by_sample(linear(x)))
        return by_sample(self.proj_out(x))


class Modulation(nnx.Module):
    """AdaLN head: SiLU, then a linear layer to `outputs`; zero weights, so that it starts at its bias."""

    def __init__(self, config: DiTConfig, outputs: int, *, bias="bias", dtype, rngs: nnx.Rngs):
        self.linear = layers.Linear(
            config.emb_dim, outputs, ("embed", "mlp"), kernel="modulation", bias_init=bias, dtype=dtype,
            result=jnp.float32, rngs=rngs,
        )  # fmt: skip

    def __call__(self, embedding: "Embedding"):
        """(B, C, L, outputs) float32, computed once per distinct time."""
        with jax.named_scope("modulation"):
            times = (embedding.clean, embedding.noisy)
            clean, noisy = (by_sample(self.linear(jax.nn.silu(rows))) for rows in times)
            return by_sample(jnp.where(embedding.is_noisy[..., None], noisy[:, None, None], clean[0]))


def modulate(x, shift_scale):
    """x * (1 + scale) + shift in float32, with shift and scale the halves of shift_scale; x's dtype."""
    shift, scale = jnp.split(shift_scale, 2, axis=-1)
    return by_sample((x.astype(jnp.float32) * (1 + scale) + shift).astype(x.dtype))


def add_gated(x, gate, branch):
    """x + gate * branch in float32; x's dtype."""
    return (x.astype(jnp.float32) + gate * branch.astype(jnp.float32)).astype(x.dtype)


class DiTBlock(nnx.Module):
    """Attention and MLP, each behind an AdaLN modulation and a gate."""

    def __init__(self, config: DiTConfig, *, dtype, rngs: nnx.Rngs):
        self.config = config
        dim, width = config.txt_dim, config.heads * config.head_dim
        make = dict(dtype=dtype, rngs=rngs)
        self.msa_in = Modulation(config, 2 * dim, **make)
        self.msa_out = Modulation(config, dim, bias="gate_bias", **make)
        self.mlp_in = Modulation(config, 2 * dim, **make)
        self.mlp_out = Modulation(config, dim, bias="gate_bias", **make)
        self.norm = layers.layer_norm(dim, eps=config.norm_eps, affine=False, **make)
        self.qkv = layers.Linear(dim, 3 * width, ("embed", "heads"), bias=config.qk_bias, **make)
        self.q_norm = layers.layer_norm(config.head_dim, eps=config.norm_eps, **make)
        self.k_norm = layers.layer_norm(config.head_dim, eps=config.norm_eps, **make)
        self.out = layers.Linear(width, dim, ("heads", "embed"), bias=config.qk_bias, **make)
        self.up = layers.Linear(dim, config.expand_ratio * dim, ("embed", "mlp"), **make)
        self.down = layers.Linear(config.expand_ratio * dim, dim, ("mlp", "embed"), **make)

    def __call__(
        self, x, embedding: Embedding, positions, *, lengths=None, documents_BxL=None, cache=None, context_lengths=None
    ):
        """x: (B, C, L, M). Returns (x, this layer's keys and values of copy 0, (B, L, H, K))."""
        with jax.named_scope("attention"):
            a, kv = self._attention(x, embedding, positions, lengths, documents_BxL, cache, context_lengths)
            x = add_gated(x, self.msa_out(embedding), a)
        with jax.named_scope("mlp"):
            h = self.up(modulate(self.norm(x), self.mlp_in(embedding)))
            h = jax.nn.gelu(constrain(h, "batch", None, None, "mlp"), approximate=True)
            x = add_gated(x, self.mlp_out(embedding), by_sample(self.down(h)))
        return by_sample(x), kv

    def _attention(self, x, embedding, positions, lengths, documents_BxL, cache, context_lengths):
        """What attention adds before its gate, and the keys and values of copy 0."""
        config = self.config
        qkv = self.qkv(modulate(self.norm(x), self.msa_in(embedding)))
        qkv = qkv.reshape(*x.shape[:3], 3, config.heads, config.head_dim)
        qkv = constrain(qkv, "batch", None, None, None, "heads", None)
        q, k, v = jnp.moveaxis(qkv, 3, 0)
        frequencies = layers.rope_frequencies(config.rope_dim, ROPE_THETA)
        q = layers.rotate_interleaved(self.q_norm(q), positions, frequencies)
        k = layers.rotate_interleaved(self.k_norm(k), positions, frequencies)
        if cache is None:
            o = block_causal_attention(q, k, v, config.block_size, lengths, documents_BxL)
        else:
            o = cached_attention(q, k, v, cache, context_lengths)
        return by_sample(self.out(o.reshape(*x.shape[:3], -1))), KVCache(k[:, 0], v[:, 0])


class DiT(nnx.Module):
    """Velocity of latents. Copy 0 is the clean one that later blocks read (see `attention`)."""

    def __init__(self, config: DiTConfig, *, dtype=jnp.float32, remat="none", rngs: nnx.Rngs):
        self.config, self.remat = config, remat
        make = dict(dtype=dtype, rngs=rngs)
        self.latent_in = layers.Linear(config.txt_in_channels, config.txt_dim, (None, "embed"), **make)
        self.time = TimeEmbedding(config, **make)
        self.blocks = layers.stack_layers(
            lambda rngs: DiTBlock(config, dtype=dtype, rngs=rngs), config.num_layers, rngs
        )
        self.out_norm = layers.layer_norm(config.txt_dim, eps=config.norm_eps, **make)
        self.out_in = Modulation(config, 2 * config.txt_dim, **make)
        self.head = layers.Linear(
            config.txt_dim, config.txt_out_channels, ("embed", None), kernel="velocity", result=jnp.float32, **make
        )

    def __call__(
        self, z_BxCxLxD, times_B, is_noisy_BxCxL, positions, *, lengths=None, documents_BxL=None,
        cache: KVCache | None = None, context_lengths=None, with_kv=False,
    ):  # fmt: skip
        """Velocity (B, C, L, D) float32, and with `with_kv` the keys and values of copy 0, (layers, B, L, H, K).

        times: (B,) or (1,) in 0..1, of the positions where is_noisy (B, C, L) holds; the others are clean, time 0. The
        modulation is computed once per distinct time. positions: broadcasts to (B, C, L). Without a cache the copies
        attend block-causally (lengths: (B,) latents in use, only needed where a block is partly used; documents: (B, L)
        numbers, a latent then sees its own document alone, in either copy); with a cache (every layer's) z is one block
        a sample, copy c seeing context_lengths (B, C) cached positions."""
        embedding = Embedding(self.time(jnp.zeros((1,), times_B.dtype)), self.time(times_B), is_noisy_BxCxL)

        def apply(block, x, layer_cache):
            x, kv = block(
                x, embedding, positions, lengths=lengths, documents_BxL=documents_BxL, cache=layer_cache,
                context_lengths=context_lengths,
            )  # fmt: skip
            return x, kv if with_kv else None

        x = by_sample(self.latent_in(z_BxCxLxD))
        x, kv = layers.scan_layers(self.blocks, apply, x, cache, remat=self.remat)
        x = modulate(self.out_norm(x), self.out_in(embedding))
        return by_sample(self.head(x)), kv
