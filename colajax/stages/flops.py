"""Useful floating point operations of a forward pass, by hand: matrix products and attention over the keys that the
masks let through. Lookups, norms and the modulation (once a distinct time, not a position) are left out."""

from colajax.models.config import DiTConfig, VAEConfig


def _attention(width: int, queries: float, keys: float) -> float:
    return 4.0 * width * queries * keys  # scores and values, a multiplication and an addition each


def _mean_keys(length: int, block_size: int) -> float:
    """Keys that a query sees on average: the earlier blocks and its own."""
    return (length + block_size) / 2


def _vae_blocks(config: VAEConfig, count: int, latents: int) -> float:
    hidden = config.ffn_dim // 2 if config.act == "swiglu" else config.ffn_dim
    weights = 4 * config.dim**2 + config.dim * (config.ffn_dim + hidden)
    keys = _mean_keys(latents, config.block_size) if config.block_causal else latents
    return count * (2.0 * weights * latents + _attention(config.dim, latents, keys))


def encoder_flops(config: VAEConfig, tokens: int) -> float:
    """One row of `tokens` through the encoder."""
    latents = tokens // config.patch_size
    ends = config.patch_size * config.dim**2 + 2 * config.latent_dim * config.dim
    return 2.0 * ends * latents + _vae_blocks(config, config.encoder_num_blocks, latents)


def decoder_flops(config: VAEConfig, tokens: int) -> float:
    """One row of `tokens` through the decoder, unembedding included."""
    latents = tokens // config.patch_size
    ends = config.latent_dim * config.dim + config.patch_size * config.dim**2
    logits = 2.0 * config.dim * config.vocab_size * tokens
    return 2.0 * ends * latents + logits + _vae_blocks(config, config.decoder_num_blocks, latents)


def vae_flops(config: VAEConfig, tokens: int) -> float:
    """One row through encoder and decoder."""
    return encoder_flops(config, tokens) + decoder_flops(config, tokens)


def dit_flops(config: DiTConfig, latents: int) -> float:
    """One sample in the two-copy layout."""
    width = config.heads * config.head_dim
    layer = 4 * config.txt_dim * width + 2 * config.expand_ratio * config.txt_dim**2
    ends = (config.txt_in_channels + config.txt_out_channels) * config.txt_dim
    attention = 2 * _attention(width, latents, _mean_keys(latents, config.block_size))
    return 2.0 * (config.num_layers * layer + ends) * 2 * latents + config.num_layers * attention
