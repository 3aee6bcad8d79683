"""The text VAE: encoder q(z0 | x), with the decoder p(x | z0) beside it."""

import jax
import jax.numpy as jnp
from flax import nnx

from colajax.axes import by_sample
from colajax.models import layers
from colajax.models.config import VAEConfig
from colajax.models.decoder import Decoder
from colajax.models.vae_block import VAEBlock

LOGVAR_RANGE = (-30.0, 20.0)


class Encoder(nnx.Module):
    """Tokens to the diagonal Gaussian posterior of their latents, block-causal."""

    def __init__(self, config: VAEConfig, *, dtype=jnp.float32, remat="none", rngs: nnx.Rngs):
        self.config, self.dtype, self.remat = config, dtype, remat
        self.embedding = nnx.Embed(
            config.vocab_size + 1, config.dim, embedding_init=layers.INIT["embedding"], rngs=rngs,
            embedding_metadata={"axes": (None, "table")},
        )  # fmt: skip
        # A convolution whose kernel is its stride is a linear layer over the tokens of a patch.
        self.patch = layers.Linear(config.patch_size * config.dim, config.dim, ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.blocks = layers.stack_layers(
            lambda rngs: VAEBlock(config, dtype=dtype, rngs=rngs), config.encoder_num_blocks, rngs
        )
        outputs = (2 if config.use_variation else 1) * config.latent_dim
        self.head = layers.Linear(
            config.dim, outputs, ("embed", None), bias=config.bias, dtype=dtype, result=jnp.float32, rngs=rngs
        )
        if config.encoder_last_ln:
            self.mean_norm = layers.layer_norm(
                config.latent_dim, eps=config.layer_norm_eps, affine=False, dtype=jnp.float32, rngs=rngs
            )

    def embed(self, tokens_BxT):
        """(B, T, M) in `dtype`. Looked up in float32 and rounded after: a token's gradient is a sum over all the places
        where it stands."""
        with jax.named_scope("embedding"):
            return by_sample(self.embedding(tokens_BxT).astype(self.dtype))

    def __call__(self, tokens_BxT, lengths=None, documents_BxL=None):
        """tokens: (B, T) in 0..vocab_size, T a multiple of patch_size, vocab_size standing for a masked token.
        lengths: (B,) latents in use, needed only without block_causal. documents: (B, L), the number of each latent's,
        which then sees its own alone. Returns mean and logvar, (B, L, D) float32; logvar is None without use_variation.
        """
        config = self.config
        x = self.embed(tokens_BxT)
        x = self.patch(x.reshape(x.shape[0], -1, config.patch_size * config.dim))
        x = by_sample(x)
        positions = jnp.arange(x.shape[1])

        def apply(block, x, _):
            return block(x, positions, lengths=lengths, documents_BxL=documents_BxL)[0], None

        x, _ = layers.scan_layers(self.blocks, apply, x, remat=self.remat)
        head = self.head(x)
        mean, logvar = jnp.split(head, 2, axis=-1) if config.use_variation else (head, None)
        if config.encoder_last_ln:
            mean = self.mean_norm(mean)
        return mean, None if logvar is None else jnp.clip(logvar, *LOGVAR_RANGE)


class TextVAE(nnx.Module):
    """Encoder and decoder under one parameter tree."""

    def __init__(self, config: VAEConfig, *, dtype=jnp.float32, remat="none", rngs: nnx.Rngs):
        self.encoder = Encoder(config, dtype=dtype, remat=remat, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, remat=remat, rngs=rngs)


def normalise(config: VAEConfig, z):
    """The latent as the prior and, as in the released inference, the decoder meet it; no one undoes it."""
    return (z - config.shifting_factor) * config.scaling_factor
