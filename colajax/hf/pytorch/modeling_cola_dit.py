"""Cola's prior: a block-causal diffusion transformer that predicts the velocity of latents.

Letters: B samples, S positions, D latent channels, R distinct times.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from .configuration_cola import ColaDiTConfig
from .layers_cola import LayerNorm, attention, rope_angles, rope_frequencies, two_copy_mask

ROPE_THETA = 10000.0
SINUSOID_DIM = 256


def rotate_interleaved(x, angles):
    """RoPE in float32 on the first channels, pair i is (2i, 2i + 1); the rest is untouched."""
    width = 2 * angles.shape[-1]
    cos, sin = angles.cos(), angles.sin()
    even, odd = x[..., 0:width:2].float(), x[..., 1:width:2].float()
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned.to(x.dtype), x[..., width:]], dim=-1)


def modulate(x, shift_scale):
    shift, scale = shift_scale.float().chunk(2, dim=-1)
    return (x.float() * (1 + scale) + shift).to(x.dtype)


class Named(nn.Module):
    """Submodules under given names: the released layout nests some deeper than the computation does."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class RotaryTable(nn.Module):
    """Holds the table that the released layout stores. It is not what is computed with: loaded in half precision it
    would be rounded."""

    def __init__(self, config):
        super().__init__()
        self.register_buffer("freqs", rope_frequencies(config.rope_dim, ROPE_THETA, None))


class ColaDiTTimeEmbedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.proj_in = nn.Linear(SINUSOID_DIM, config.txt_dim)
        self.proj_hid = nn.Linear(config.txt_dim, config.txt_dim)
        self.proj_out = nn.Linear(config.txt_dim, config.emb_dim)

    def forward(self, times):
        """times: (R,) in 0..1000. Returns (R, emb_dim)."""
        half = SINUSOID_DIM // 2
        exponents = torch.arange(half, dtype=torch.float32, device=times.device) / half
        angles = times.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
        x = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.proj_in.weight.dtype)
        return self.proj_out(F.silu(self.proj_hid(F.silu(self.proj_in(x)))))


def modulation(config, outputs):
    return nn.Sequential(nn.SiLU(), nn.Linear(config.emb_dim, outputs))


class ColaDiTAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config.heads * config.head_dim
        self.proj_qkv = nn.Linear(config.txt_dim, 3 * width, bias=config.qk_bias)
        self.proj_out = nn.Linear(width, config.txt_dim, bias=config.qk_bias)
        self.norm_q = LayerNorm(config.head_dim, config.norm_eps)
        self.norm_k = LayerNorm(config.head_dim, config.norm_eps)
        self.rope = Named(rope=RotaryTable(config))

    def forward(self, x, positions, mask, cache):
        config = self.config
        qkv = self.proj_qkv(x).unflatten(-1, (3, config.heads, config.head_dim))
        q, k, v = (a.transpose(1, 2) for a in qkv.unbind(dim=2))
        angles = rope_angles(positions, rope_frequencies(config.rope_dim, ROPE_THETA, x.device))
        q, k = rotate_interleaved(self.norm_q(q), angles), rotate_interleaved(self.norm_k(k), angles)
        return self.proj_out(attention(q, k, v, mask, cache)), (k, v)


class ColaDiTBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim = config.txt_dim
        self.msa = ColaDiTAttention(config)
        self.mlp = Named(
            proj_in=nn.Linear(dim, config.expand_ratio * dim), proj_out=nn.Linear(config.expand_ratio * dim, dim)
        )
        self.ada = Named(
            msa_in=modulation(config, 2 * dim), msa_out=modulation(config, dim),
            mlp_in=modulation(config, 2 * dim), mlp_out=modulation(config, dim),
        )  # fmt: skip
        self.norm = LayerNorm(dim, config.norm_eps, elementwise_affine=False)

    def forward(self, x, embedding, which, positions, mask, cache):
        """embedding: (R, emb_dim), one row a distinct time; which: (B, S), the row of each position."""
        h, kv = self.msa(modulate(self.norm(x), self.ada.msa_in(embedding)[which]), positions, mask, cache)
        x = x + self.ada.msa_out(embedding)[which] * h
        h = self.mlp.proj_in(modulate(self.norm(x), self.ada.mlp_in(embedding)[which]))
        h = self.mlp.proj_out(F.gelu(h, approximate="tanh"))
        return x + self.ada.mlp_out(embedding)[which] * h, kv


class ColaDiTModel(PreTrainedModel):
    """The prior. Velocities are float32, whatever the weights are."""

    config_class = ColaDiTConfig
    main_input_name = "latents"

    def __init__(self, config):
        super().__init__(config)
        self.txt_in = Named(proj=nn.Linear(config.txt_in_channels, config.txt_dim))
        self.emb_in = ColaDiTTimeEmbedding(config)
        self.blocks = nn.ModuleList(ColaDiTBlock(config) for _ in range(config.num_layers))
        self.txt_out_norm = LayerNorm(config.txt_dim, config.norm_eps)
        self.txt_out_ada = Named(out_in=modulation(config, 2 * config.txt_dim))
        self.txt_out = Named(proj=nn.Linear(config.txt_dim, config.txt_out_channels))
        self.post_init()

    def forward(self, latents, timesteps, positions, mask, cache=None):
        """Velocity (B, S, D), and the keys and values of every layer.

        latents: (B, S, D); timesteps: (B, S) in 0..1000, 0 for a clean position; positions: (B or 1, S); mask:
        booleans that broadcast to (B, 1, S, J), over the cached positions, if there is a cache, and then these.
        """
        times, which = torch.unique(timesteps, return_inverse=True)  # the modulation is computed once a distinct time
        embedding = self.emb_in(times)
        x = self.txt_in.proj(latents.to(self.txt_in.proj.weight.dtype))
        new = []
        for i, block in enumerate(self.blocks):
            x, kv = block(x, embedding, which, positions, mask, None if cache is None else cache[i])
            new.append(kv)
        x = modulate(self.txt_out_norm(x), self.txt_out_ada.out_in(embedding)[which])
        return self.txt_out.proj(x).float(), new

    def two_copies(self, z0, zt, timesteps):
        """The training layout: the velocities (B, L, D) of the clean latents z0, which have time 0, and of the noisy
        ones zt, which have timesteps (B, L) and see the clean ones of earlier blocks and the noisy ones of their own.
        Samples of unequal lengths may be padded at their end to whole blocks."""
        length = z0.shape[1]
        positions = torch.arange(length, device=z0.device).repeat(2)[None]
        mask = two_copy_mask(length, self.config.block_size, z0.device)
        times = torch.cat([torch.zeros_like(timesteps), timesteps], dim=1)
        velocity, _ = self(torch.cat([z0, zt], dim=1), times, positions, mask)
        return velocity[:, :length], velocity[:, length:]


# So that save_pretrained writes these classes beside the weights.
ColaDiTModel.register_for_auto_class("AutoModel")
