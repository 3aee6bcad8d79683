"""Floating point operations of matrix products, by hand: linear layers and attention. All else (lookups, norms,
softmax, losses) is left out, and so is what rematerialisation computes twice.

A linear layer's backward pass has two products of the size of its forward pass, one by its kernel and one by its
input; attention's has twice its forward pass too. So training is three times the forward pass, but for a layer whose
input nothing trains.
"""

import enum

from colajax.models.config import DiTConfig, LlamaConfig, VAEConfig
from colajax.models.dit import SINUSOID_DIM

TRAINED = 3  # forward and backward pass, in forward passes
TRAINED_KERNEL = 2  # of a layer whose input nothing trains


class Keys(enum.Enum):
    """Which keys of attention are counted.

    ALLOWED: those that the mask lets a query see. The convention of MFU and of plans: what is multiplied and thrown
    away is no useful work; documents that are isolated count as one, since how long they are is the data's. COMPUTED:
    all that the program multiplies, for the ledger of what a run has cost.
    """

    ALLOWED = "allowed"
    COMPUTED = "computed"


def attention_flops(width: int, queries: float, length: int, block_size: int, keys: Keys) -> float:
    """Scores and values of `queries` over rows of `length` in blocks: a query reads the blocks before its own and its
    own, and the program multiplies it with the whole row and then with its own block."""
    if keys is Keys.ALLOWED:
        seen = (length + block_size) / 2
    else:
        seen = length + block_size if length > block_size else block_size
    return 4.0 * width * queries * seen


def _vae_blocks(config: VAEConfig, count: int, latents: int, keys: Keys) -> float:
    hidden = config.ffn_dim // 2 if config.act == "swiglu" else config.ffn_dim
    weights = 4 * config.dim**2 + config.dim * (config.ffn_dim + hidden)
    block_size = config.block_size if config.block_causal else latents
    return count * (2.0 * weights * latents + attention_flops(config.dim, latents, latents, block_size, keys))


def encoder_flops(config: VAEConfig, tokens: int, keys: Keys) -> float:
    """One row of `tokens` forward through the encoder."""
    latents = tokens // config.patch_size
    statistics = 2 if config.use_variation else 1
    ends = config.patch_size * config.dim**2 + statistics * config.latent_dim * config.dim
    return 2.0 * ends * latents + _vae_blocks(config, config.encoder_num_blocks, latents, keys)


def decoder_flops(config: VAEConfig, tokens: int, keys: Keys) -> float:
    """One row of `tokens` forward through the decoder, up to the unembedding."""
    latents = tokens // config.patch_size
    ends = config.latent_dim * config.dim + config.patch_size * config.dim**2
    return 2.0 * ends * latents + _vae_blocks(config, config.decoder_num_blocks, latents, keys)


def unembedding_flops(width: int, vocab_size: int, tokens: int) -> float:
    """One row of `tokens` forward to its logits."""
    return 2.0 * width * vocab_size * tokens


def trained_dit_flops(config: DiTConfig, latents: int, keys: Keys, *, latents_trained: bool) -> float:
    """One sample in the two-copy layout, forward and backward; latents_trained: whether the encoder is, too."""
    width = config.heads * config.head_dim
    layer = 4 * config.txt_dim * width + 2 * config.expand_ratio * config.txt_dim**2
    positions = 2 * latents
    attention = attention_flops(width, positions, latents, config.block_size, keys)
    forward = config.num_layers * (2.0 * layer * positions + attention)
    head = 2.0 * config.txt_dim * config.txt_out_channels * positions
    latent_in = 2.0 * config.txt_in_channels * config.txt_dim * positions
    return TRAINED * (forward + head) + (TRAINED if latents_trained else TRAINED_KERNEL) * latent_in


def trained_modulation_flops(config: DiTConfig) -> float:
    """One distinct time, forward and backward: its embedding, and the modulation of every layer. A batch has one time a
    sample, and the time 0 of all clean positions."""
    dim = config.txt_dim
    embedding = dim**2 + dim * config.emb_dim
    modulation = (6 * config.num_layers + 2) * dim * config.emb_dim
    return 2.0 * (TRAINED * (embedding + modulation) + TRAINED_KERNEL * SINUSOID_DIM * dim)


def llama_flops(config: LlamaConfig, tokens: int, keys: Keys, *, causal: bool) -> float:
    """One row of `tokens` forward through the layers; the program multiplies every query with the whole row."""
    width = config.hidden_size
    layer = 4 * width**2 + 3 * width * config.intermediate_size
    block_size = 1 if causal and keys is Keys.ALLOWED else tokens
    attention = attention_flops(width, tokens, tokens, block_size, keys)
    return config.num_hidden_layers * (2.0 * layer * tokens + attention)
