"""The conditional decoder p(x | z0): latents to token logits."""

import jax
import jax.numpy as jnp
from flax import nnx

from colajax.axes import by_sample, constrain
from colajax.models import layers
from colajax.models.attention import KVCache
from colajax.models.config import VAEConfig
from colajax.models.vae_block import VAEBlock


class Decoder(nnx.Module):
    """Block-causal over latents; each latent gives the logits of the patch_size tokens it stands for."""

    def __init__(self, config: VAEConfig, *, dtype=jnp.float32, remat="none", rngs: nnx.Rngs):
        self.config, self.remat = config, remat
        dim = config.dim
        make = dict(dtype=dtype, rngs=rngs)
        self.latent_in = layers.Linear(config.latent_dim, dim, (None, "embed"), bias=config.bias, **make)
        self.blocks = layers.stack_layers(
            lambda rngs: VAEBlock(config, dtype=dtype, rngs=rngs), config.decoder_num_blocks, rngs
        )
        self.unpatch = layers.Linear(dim, config.patch_size * dim, ("embed", "mlp"), **make)
        self.norm = layers.layer_norm(dim, eps=config.layer_norm_eps, **make)
        self.head = layers.Linear(
            dim, config.vocab_size, ("table", None), bias=config.bias, result=jnp.float32, **make
        )

    def hidden(
        self, z_BxLxD, *, lengths=None, documents_BxL=None, positions=None, cache: KVCache | None = None,
        context_lengths=None,
    ):  # fmt: skip
        """Everything before the vocabulary. z: (B, L, D); documents: (B, L), the number of each latent's, which then
        sees its own alone. Returns (h (B, T, M), keys and values of every layer).

        With a cache (every layer's), z is one block of the prior a sample at positions (B, S), and context_lengths (B,)
        of the cached positions are seen."""
        config = self.config
        x = by_sample(self.latent_in(z_BxLxD))
        positions = jnp.arange(x.shape[1]) if positions is None else positions

        def apply(block, x, layer_cache):
            return block(
                x, positions, lengths=lengths, documents_BxL=documents_BxL, cache=layer_cache,
                context_lengths=context_lengths,
            )  # fmt: skip

        x, kv = layers.scan_layers(self.blocks, apply, x, cache, remat=self.remat)
        # Output channel c * patch_size + p is channel c of the patch's token p.
        x = self.unpatch(x).reshape(*x.shape[:2], config.dim, config.patch_size).swapaxes(2, 3)
        x = by_sample(x.reshape(x.shape[0], -1, config.dim))
        return self.norm(x), kv

    def __call__(self, z_BxLxD, **cached):
        """Logits (B, T, V) float32 and the keys and values (layers, B, L, H, K); arguments as in `hidden`."""
        h, kv = self.hidden(z_BxLxD, **cached)
        with jax.named_scope("unembedding"):
            return constrain(self.head(h), "batch", None, "vocab"), kv
