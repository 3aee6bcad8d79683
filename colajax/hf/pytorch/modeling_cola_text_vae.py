"""Cola's text VAE: an encoder of tokens into latents and a decoder of latents into token logits, both block-causal.

Letters: B samples, T tokens, L = T / patch_size latents, D latent channels, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from .configuration_cola import ColaTextVAEConfig
from .layers_cola import LayerNorm, attention, block_causal_mask, rope_angles, rope_frequencies, rotate_half


class ColaTextVAEBlock(nn.Module):
    """Attention and feed-forward; with post_norm it is the residual that norm_attn normalises."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        dim, eps = config.dim, config.layer_norm_eps
        hidden = config.ffn_dim // 2 if config.act == "swiglu" else config.ffn_dim
        self.norm_attn = LayerNorm(dim, eps, elementwise_affine=config.layer_norm_affine)
        self.qkv_proj = nn.Linear(dim, 3 * dim, bias=config.qk_bias)
        if config.qk_norm:
            self.q_norm = LayerNorm(dim, eps, elementwise_affine=config.qk_norm_affine)
            self.k_norm = LayerNorm(dim, eps, elementwise_affine=config.qk_norm_affine)
        self.attn_out_proj = nn.Linear(dim, dim, bias=config.bias)
        self.norm_ffn = LayerNorm(dim, eps)
        self.ffn_proj = nn.Linear(dim, config.ffn_dim, bias=config.bias)
        self.ffn_out = nn.Linear(hidden, dim, bias=config.bias)

    def forward(self, x, positions, mask, cache=None):
        """x: (B, S, dim); positions: (B, S). Returns x and this layer's new keys and values, (B, H, S, K)."""
        config = self.config
        q, k, v = self.qkv_proj(x if config.post_norm else self.norm_attn(x)).chunk(3, dim=-1)
        if config.clip_qkv is not None:
            q, k, v = (a.clamp(-config.clip_qkv, config.clip_qkv) for a in (q, k, v))
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (a.unflatten(-1, (config.num_heads, -1)).transpose(1, 2) for a in (q, k, v))
        angles = rope_angles(positions, rope_frequencies(q.shape[-1], config.rope_theta, x.device))
        rope_dtype = torch.float32 if config.rope_full_precision else x.dtype
        q, k = rotate_half(q, angles, rope_dtype), rotate_half(k, angles, rope_dtype)
        a = self.attn_out_proj(attention(q, k, v, mask, cache))
        if config.post_norm:
            x = self.norm_attn(x) + a
            x = x + self.norm_ffn(self.feed_forward(x))
        else:
            x = x + a
            x = x + self.feed_forward(self.norm_ffn(x))
        return x, (k, v)

    def feed_forward(self, x):
        h = self.ffn_proj(x)
        if self.config.act == "swiglu":
            value, gate = h.chunk(2, dim=-1)
            return self.ffn_out(F.silu(gate) * value)
        return self.ffn_out(F.gelu(h) if self.config.act == "gelu" else F.silu(h))


def run_blocks(blocks, config, x, lengths, positions, mask, cache):
    """Every block in turn. Without positions and mask, x is a whole sequence from position 0, block-causal."""
    if positions is None:
        length = x.shape[1]
        positions = torch.arange(length, device=x.device)[None]
        block_size = config.block_size if config.block_causal else max(length, 1)
        mask = block_causal_mask(length, block_size, x.device, lengths)
    new = []
    for i, block in enumerate(blocks):
        x, kv = block(x, positions, mask, None if cache is None else cache[i])
        new.append(kv)
    return x, new


class ColaTextVAEEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.wte = nn.Embedding(config.vocab_size + 1, config.dim)  # the last row stands for a masked token
        self.patch_embedder = nn.Conv1d(config.dim, config.dim, kernel_size=patch, stride=patch)
        self.blocks = nn.ModuleList(ColaTextVAEBlock(config) for _ in range(config.encoder_num_blocks))
        outputs = (2 if config.use_variation else 1) * config.latent_dim
        self.final_layer = nn.Linear(config.dim, outputs, bias=config.bias)

    def forward(self, tokens, lengths=None):
        config = self.config
        x = self.patch_embedder(self.wte(tokens).transpose(1, 2)).transpose(1, 2)
        x, _ = run_blocks(self.blocks, config, x, lengths, None, None, None)
        head = self.final_layer(x).float()
        mean, logvar = head.chunk(2, dim=-1) if config.use_variation else (head, None)
        if config.encoder_last_ln:
            mean = F.layer_norm(mean, (config.latent_dim,), eps=config.layer_norm_eps)
        return mean, None if logvar is None else logvar.clamp(-30.0, 20.0)


class ColaTextVAEDecoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        dim = config.dim
        self.in_layer = nn.Linear(config.latent_dim, dim, bias=config.bias)
        self.blocks = nn.ModuleList(ColaTextVAEBlock(config) for _ in range(config.decoder_num_blocks))
        self.unpatch_layer = nn.Linear(dim, config.patch_size * dim)
        self.final_norm = LayerNorm(dim, config.layer_norm_eps)
        self.final_layer = nn.Linear(dim, config.vocab_size, bias=config.bias)

    def forward(self, z, lengths=None, positions=None, mask=None, cache=None):
        config = self.config
        x = self.in_layer(z.to(self.in_layer.weight.dtype))
        x, new = run_blocks(self.blocks, config, x, lengths, positions, mask, cache)
        # Output channel c * patch_size + p is channel c of the patch's token p.
        x = self.unpatch_layer(x).unflatten(-1, (config.dim, config.patch_size)).transpose(2, 3).flatten(1, 2)
        return self.final_layer(self.final_norm(x)).float(), new


class ColaTextVAEModel(PreTrainedModel):
    """The text VAE. Latents, log-variances and logits are float32, whatever the weights are."""

    config_class = ColaTextVAEConfig
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        self.encoder = ColaTextVAEEncoder(config)
        self.decoder = ColaTextVAEDecoder(config)
        self.post_init()

    def encode(self, input_ids, lengths=None):
        """The posterior of the latents: mean and log-variance, (B, L, D); the latter None without use_variation.

        input_ids: (B, T), T a multiple of patch_size, vocab_size standing for a masked token; lengths: (B,) latents in
        use, which matters only where a block is partly used.
        """
        return self.encoder(input_ids, lengths)

    def normalise(self, z):
        """The latent as the prior and the decoder meet it."""
        return (z - self.config.shifting_factor) * self.config.scaling_factor

    def decode(self, z, lengths=None):
        """Logits (B, T, V) of latents z (B, L, D), taken as they are."""
        return self.decoder(z, lengths)[0]

    def forward(self, input_ids, lengths=None):
        """Logits (B, T, V) of the input, from the means of its latents."""
        return self.decode(self.normalise(self.encode(input_ids, lengths)[0]), lengths)


# So that save_pretrained writes these classes beside the weights.
ColaTextVAEModel.register_for_auto_class("AutoModel")
