"""LLaMA, the network of both baselines: causal it is the autoregressive one, bidirectional LLaDA's."""

import jax
import jax.numpy as jnp
from flax import nnx

from colajax.axes import by_sample, constrain
from colajax.models import layers
from colajax.models.attention import KVCache, cached_attention, row_attention
from colajax.models.config import LlamaConfig


class LlamaBlock(nnx.Module):
    """Attention and SwiGLU, each behind an RMSNorm; no biases."""

    def __init__(self, config: LlamaConfig, *, causal: bool, dtype, rngs: nnx.Rngs):
        self.config, self.causal = config, causal
        dim, inner = config.hidden_size, config.intermediate_size
        make_norm = dict(eps=config.rms_norm_eps, dtype=dtype, rngs=rngs)
        make_linear = dict(bias=False, dtype=dtype, rngs=rngs)
        self.norm_attn = layers.rms_norm(dim, **make_norm)
        self.query = layers.Linear(dim, dim, ("embed", "heads"), **make_linear)
        self.key = layers.Linear(dim, dim, ("embed", "heads"), **make_linear)
        self.value = layers.Linear(dim, dim, ("embed", "heads"), **make_linear)
        self.out = layers.Linear(dim, dim, ("heads", "embed"), **make_linear)
        self.norm_ffn = layers.rms_norm(dim, **make_norm)
        self.gate = layers.Linear(dim, inner, ("embed", "mlp"), **make_linear)
        self.up = layers.Linear(dim, inner, ("embed", "mlp"), **make_linear)
        self.down = layers.Linear(inner, dim, ("mlp", "embed"), **make_linear)

    def __call__(
        self, x_BxTxM, positions, *, lengths=None, documents_BxT=None, cache: KVCache | None = None,
        context_lengths=None,
    ):  # fmt: skip
        """x: (B, T, M); positions: (B, T) or (T,); arguments as in `Llama.hidden`, of one layer. Returns (x, the
        layer's new keys and values, (B, T, H, K))."""
        with jax.named_scope("attention"):
            h = self.norm_attn(x_BxTxM)
            a, kv = self._attention(h, positions, lengths, documents_BxT, cache, context_lengths)
            x = by_sample(x_BxTxM + a)
        with jax.named_scope("mlp"):
            h = self.norm_ffn(x)
            gate, up = (constrain(linear(h), "batch", None, "mlp") for linear in (self.gate, self.up))
            f = by_sample(self.down(jax.nn.silu(gate) * up))
        return by_sample(x + f), kv

    def _attention(self, h_BxTxM, positions, lengths, documents_BxT, cache, context_lengths):
        """What attention adds, (B, T, M), and the layer's new keys and values."""
        heads = (*h_BxTxM.shape[:2], self.config.num_attention_heads, self.config.head_dim)
        q, k, v = (
            constrain(linear(h_BxTxM).reshape(heads), "batch", None, "heads", None)
            for linear in (self.query, self.key, self.value)
        )
        frequencies = layers.rope_frequencies(self.config.head_dim, self.config.rope_theta)
        q, k = (layers.rotate_half(a, positions, frequencies) for a in (q, k))
        if cache is None:
            o = row_attention(q, k, v, causal=self.causal, lengths=lengths, documents_BxL=documents_BxT)
        else:
            one_copy = (a[:, None] for a in (q, k, v))
            inner = 1 if self.causal else None
            o = cached_attention(*one_copy, cache, context_lengths[:, None], block_size=inner)
        return by_sample(self.out(o.reshape(h_BxTxM.shape))), KVCache(k, v)


class Llama(nnx.Module):
    """Tokens to the logits of the next token (causal) or of the token itself (bidirectional).

    With `mask_row` the embedding has one row more than the vocabulary, for the masked token; the logits do not.
    """

    def __init__(
        self, config: LlamaConfig, *, causal: bool, mask_row: bool, dtype=jnp.float32, remat="none", rngs: nnx.Rngs
    ):
        self.config, self.dtype, self.remat = config, dtype, remat
        self.embedding = nnx.Embed(
            config.vocab_size + mask_row, config.hidden_size, embedding_init=layers.INIT["embedding"], rngs=rngs,
            embedding_metadata={"axes": (None, "table")},
        )  # fmt: skip
        self.blocks = layers.stack_layers(
            lambda rngs: LlamaBlock(config, causal=causal, dtype=dtype, rngs=rngs), config.num_hidden_layers, rngs
        )
        self.norm = layers.rms_norm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.head = layers.Linear(
            config.hidden_size, config.vocab_size, ("table", None), bias=False, dtype=dtype, result=jnp.float32,
            rngs=rngs,
        )  # fmt: skip

    def hidden(
        self, tokens_BxT, *, lengths=None, documents_BxT=None, positions=None, cache: KVCache | None = None,
        context_lengths=None, with_kv=False,
    ):  # fmt: skip
        """Everything before the vocabulary, (B, T, M), and with `with_kv` new keys and values, (layers, B, T, H, K).

        lengths: (B,) positions in use, or None for all; the others are read by none. documents: (B, T), the number of
        each token's, which then sees its own alone. positions: (B, T) or (T,), by default 0..T-1. With a cache (every
        layer's) the tokens follow context_lengths (B,) cached positions of their sample, and `positions` says where
        they stand."""

        def apply(block, x, layer_cache):
            x, kv = block(
                x, positions, lengths=lengths, documents_BxT=documents_BxT, cache=layer_cache,
                context_lengths=context_lengths,
            )  # fmt: skip
            return x, kv if with_kv else None

        positions = jnp.arange(tokens_BxT.shape[1]) if positions is None else positions
        with jax.named_scope("embedding"):  # looked up in float32, as in the VAE
            x = by_sample(self.embedding(tokens_BxT).astype(self.dtype))
        x, kv = layers.scan_layers(self.blocks, apply, x, cache, remat=self.remat)
        return self.norm(x), kv

    def logits(self, h_BxTxM):
        """(B, T, V) float32 from what `hidden` gives, or a part of its positions."""
        with jax.named_scope("unembedding"):
            return constrain(self.head(h_BxTxM), "batch", None, "vocab")

    def __call__(self, tokens_BxT, **cached):
        """Logits (B, T, V) float32 and the new keys and values; arguments as in `hidden`."""
        h, kv = self.hidden(tokens_BxT, **cached)
        return self.logits(h), kv
