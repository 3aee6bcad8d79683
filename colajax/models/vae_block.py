"""The transformer block that the VAE's encoder and decoder share."""

import jax
import jax.numpy as jnp
from flax import nnx

from colajax.axes import by_sample, constrain
from colajax.models import layers
from colajax.models.attention import KVCache, block_causal_attention, cached_attention
from colajax.models.config import VAEConfig


def activate(name: str, x):
    """swiglu halves the last axis: it splits in (value, gate); gelu (exact) and silu keep it."""
    if name == "swiglu":
        value, gate = jnp.split(x, 2, axis=-1)
        return jax.nn.silu(gate) * value
    return jax.nn.gelu(x, approximate=False) if name == "gelu" else jax.nn.silu(x)


class VAEBlock(nnx.Module):
    """Attention and feed-forward, post-norm (the residual is what norm_attn normalises) or pre-norm."""

    def __init__(self, config: VAEConfig, *, dtype, rngs: nnx.Rngs):
        self.config = config
        hidden = config.ffn_dim // 2 if config.act == "swiglu" else config.ffn_dim
        make_linear = dict(dtype=dtype, rngs=rngs)
        make_norm = dict(eps=config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.norm_attn = layers.layer_norm(config.dim, affine=config.layer_norm_affine, **make_norm)
        self.qkv = layers.Linear(config.dim, 3 * config.dim, ("embed", "heads"), bias=config.qk_bias, **make_linear)
        if config.qk_norm:
            self.q_norm = layers.layer_norm(config.dim, affine=config.qk_norm_affine, **make_norm)
            self.k_norm = layers.layer_norm(config.dim, affine=config.qk_norm_affine, **make_norm)
        self.out = layers.Linear(config.dim, config.dim, ("heads", "embed"), bias=config.bias, **make_linear)
        self.norm_ffn = layers.layer_norm(config.dim, **make_norm)
        self.up = layers.Linear(config.dim, config.ffn_dim, ("embed", "mlp"), bias=config.bias, **make_linear)
        self.down = layers.Linear(hidden, config.dim, ("mlp", "embed"), bias=config.bias, **make_linear)
        self.dtype = dtype

    def __call__(
        self, x_BxLxM, positions, *, lengths=None, documents_BxL=None, cache: KVCache | None = None,
        context_lengths=None,
    ):  # fmt: skip
        """x: (B, L, M); positions: (B, L) or (L,). With a cache (one layer's) x is one block of the prior a sample, and
        context_lengths (B,) says how much of the cache each sees. Returns (x, the layer's new keys and values)."""
        config = self.config
        with jax.named_scope("attention"):
            a, kv = self._attention(x_BxLxM, positions, lengths, documents_BxL, cache, context_lengths)
        x = self.norm_attn(x_BxLxM) + a if config.post_norm else x_BxLxM + a
        h = x if config.post_norm else self.norm_ffn(x)
        with jax.named_scope("mlp"):
            up = constrain(activate(config.act, self.up(h)), "batch", None, "mlp")
            f = by_sample(self.down(up))
        x = x + (self.norm_ffn(f) if config.post_norm else f)
        return by_sample(x), kv

    def _attention(self, x_BxLxM, positions, lengths, documents_BxL, cache, context_lengths):
        """What attention adds, (B, L, M), and the layer's new keys and values."""
        config = self.config
        h = x_BxLxM if config.post_norm else self.norm_attn(x_BxLxM)
        q, k, v = jnp.split(self.qkv(h), 3, axis=-1)
        if config.clip_qkv is not None:
            q, k, v = (jnp.clip(a, -config.clip_qkv, config.clip_qkv) for a in (q, k, v))
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        heads = (config.num_heads, config.head_dim)
        q, k, v = (constrain(a.reshape(*a.shape[:-1], *heads), "batch", None, "heads", None) for a in (q, k, v))
        frequencies = layers.rope_frequencies(config.head_dim, config.rope_theta)
        rope_dtype = jnp.float32 if config.rope_full_precision else self.dtype
        q, k = (layers.rotate_half(a, positions, frequencies, rope_dtype) for a in (q, k))
        one_copy = (a[:, None] for a in (q, k, v))
        block_size = config.block_size if config.block_causal else x_BxLxM.shape[1]
        if cache is None:
            o = block_causal_attention(*one_copy, block_size, lengths, documents_BxL)
        else:
            o = cached_attention(*one_copy, cache, context_lengths[:, None], block_size=block_size)
        return by_sample(self.out(o.reshape(x_BxLxM.shape))), KVCache(k, v)
