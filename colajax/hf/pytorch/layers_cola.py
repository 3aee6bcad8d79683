"""What the models share. Letters: B samples, S query positions, J key positions, H heads, K channels.

A cache is a pair (keys, values), each (B, H, J, K), one pair a layer.
"""

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.LayerNorm):
    """Statistics, scale and shift in float32; the result in the input's dtype."""

    def forward(self, x):
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def rope_frequencies(dim, theta, device):
    """theta^(-2i / dim), (dim / 2,) float32."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)


def rope_angles(positions, frequencies):
    """positions (B, S) -> angles (B, 1, S, dim / 2), float32."""
    return (positions[..., None].float() * frequencies)[:, None]


def rotate_half(x, angles, dtype):
    """RoPE on the whole head, pair i is (i, i + K / 2); the rotation in `dtype`."""
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def attention(q, k, v, mask, cache=None):
    """q, k, v: (B, H, S, K); mask: booleans that broadcast to (B, 1, S, J); cache: keys and values that come before
    k and v along J. Softmax in float32. Returns (B, S, H * K)."""
    if cache is not None:
        k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).float()
    weights = scores.masked_fill(~mask, -1e30).softmax(dim=-1).to(v.dtype)  # finite: a row may see nothing
    return torch.matmul(weights, v).transpose(1, 2).flatten(2)


def block_causal_mask(length, block_size, device, lengths=None):
    """Position i sees j where block(i) >= block(j) and, with lengths (B,), j < lengths. (B or 1, 1, length, length)."""
    position = torch.arange(length, device=device)
    mask = (position[:, None] // block_size >= position // block_size)[None]
    if lengths is not None:
        mask = mask & (position < lengths[:, None])[:, None]
    return mask[:, None]


def two_copy_mask(length, block_size, device):
    """The training layout: clean positions, then noisy ones. Clean sees clean, block-causally; noisy sees clean of
    earlier blocks and noisy of its own. (1, 1, 2 * length, 2 * length)."""
    block = torch.arange(length, device=device) // block_size
    earlier, own = block[:, None] > block, block[:, None] == block
    clean = torch.cat([earlier | own, torch.zeros_like(own)], dim=1)
    return torch.cat([clean, torch.cat([earlier, own], dim=1)])[None, None]


def cached_mask(context_lengths, cached, size, block_size=None):
    """A block of `size` that sees the first context_lengths (B,) of `cached` positions, and itself; with a block_size,
    of itself what is in no later block of that size: (B, 1, size, J)."""
    seen = torch.arange(cached, device=context_lengths.device) < context_lengths[:, None]
    own = block_causal_mask(size, block_size or size, seen.device)[0, 0]
    parts = (seen[:, None].expand(-1, size, -1), own[None].expand(len(seen), -1, -1))
    return torch.cat(parts, dim=2)[:, None]


def grow(cache, capacity):
    """The caches of every layer, padded with zeros to `capacity` positions."""
    return [tuple(F.pad(x, (0, 0, 0, capacity - x.shape[2])) for x in layer) for layer in cache]


def append(cache, new, at):
    """Writes the new block of every layer into its cache, at each sample's position at (B,)."""
    rows = torch.arange(len(at), device=at.device)[:, None]
    columns = at[:, None] + torch.arange(new[0][0].shape[2], device=at.device)
    for old_layer, new_layer in zip(cache, new, strict=True):
        for old, block in zip(old_layer, new_layer, strict=True):
            old[rows, :, columns] = block.transpose(1, 2)
