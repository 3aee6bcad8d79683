"""Block attention: one primitive for every attention of the model.

A position reads two sets of keys: a *context* of finished, clean positions from earlier blocks, and its *own* block in
its own copy of the sequence. Block-causal self-attention, the two-copy layout of training (a clean and a noisy copy of
each sample, where noisy queries see clean keys of earlier blocks and noisy keys of their own) and a generation step
against a cache differ in what the context is, and in nothing else. So no 2L x 2L mask exists: two copies cost
2 L (L + block) scores. The baselines' attention is the same with the whole row as one block: L^2 scores.

Where the document of each position is given, a position reads those of its own alone; blocks stay where they are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colajax.models.layers import precision_of

MASKED = -1e30  # finite, so that a block whose context is empty stays free of NaN


class KVCache(NamedTuple):
    """Keys and values of finished positions, k and v: (layers, B, J, H, K), or one layer's (B, J, H, K)."""

    k: jax.Array
    v: jax.Array


def _joint_softmax(scores, values):
    """Softmax over several key sets at once, each with its own contraction back to values.

    scores: list of (..., H, S, keys) float32; values: list of functions from probabilities to (..., S, H, K).
    """
    top = scores[0].max(-1, keepdims=True)
    for other in scores[1:]:
        top = jnp.maximum(top, other.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    weights = [jnp.exp(s - top) for s in scores]
    total = sum(w.sum(-1, keepdims=True) for w in weights)
    return sum(value(w / total) for w, value in zip(weights, values, strict=True))


def attend(q, k, v, own_mask, context: KVCache | None, context_mask):
    """Attention of blocks to themselves and to a context.

    q, k, v: (B, C, N, S, H, K); own_mask: booleans that broadcast to (B, C, N, S, S), queries by keys of the block, or
    None; context.k, context.v: (B, J, H, K), shared by the copies; context_mask: broadcasts to (B, C, N, S, J).
    Scores, softmax in float32. Returns (B, C, N, S, H, K) in q's dtype.
    """
    dtype, precision = q.dtype, precision_of(q.dtype)
    scale = q.shape[-1] ** -0.5

    def scores_of(equation, keys, mask):
        scores = scale * jnp.einsum(equation, q, keys, precision=precision, preferred_element_type=jnp.float32)
        return scores if mask is None else jnp.where(mask[..., None, :, :], scores, MASKED)

    def values_of(equation, values):
        return lambda weights: jnp.einsum(equation, weights.astype(dtype), values, precision=precision)

    scores = [scores_of("bcnqhk,bcnshk->bcnhqs", k, own_mask)]
    values = [values_of("bcnhqs,bcnshk->bcnqhk", v)]
    if context is not None:
        scores.append(scores_of("bcnqhk,bjhk->bcnhqj", context.k, context_mask))
        values.append(values_of("bcnhqj,bjhk->bcnqhk", context.v))
    return _joint_softmax(scores, values)


def block_causal_attention(q, k, v, block_size: int, lengths=None, documents_BxL=None):
    """Copy 0 is the clean one: every copy reads copy 0's keys of earlier blocks and its own keys of its own block.

    q, k, v: (B, C, L, H, K); L need not be a multiple of block_size. lengths: (B,) positions in use, or None for L;
    it matters only where a block holds both used and unused positions. documents: (B, L) numbers, or None: all see
    all. Returns (B, C, L, H, K).
    """
    copies, length = q.shape[1:3]
    blocks = -(-length // block_size)
    padding = blocks * block_size - length
    own_mask = None
    if padding or lengths is not None:
        used = jnp.full((1,), length) if lengths is None else lengths
        own_mask = (jnp.arange(blocks * block_size) < used[:, None]).reshape(-1, 1, blocks, 1, block_size)

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0), (0, 0))) if padding else x
        return x.reshape(x.shape[0], copies, blocks, block_size, *x.shape[3:])

    context = KVCache(k[:, 0], v[:, 0]) if blocks > 1 else None
    earlier = jnp.asarray((np.arange(length) // block_size)[None, None, :] < np.arange(blocks)[:, None, None])
    if documents_BxL is not None:
        # Compared again in every layer: with rematerialisation, what the backward pass keeps is the numbers, (B, L).
        of_queries = jnp.pad(documents_BxL, ((0, 0), (0, padding))).reshape(-1, 1, blocks, block_size, 1)
        same = of_queries == of_queries.swapaxes(-1, -2)
        own_mask = same if own_mask is None else own_mask & same
        earlier = earlier & (of_queries == documents_BxL[:, None, None, None])
    out = attend(split(q), split(k), split(v), own_mask, context, earlier)
    return out.reshape(out.shape[0], copies, blocks * block_size, *out.shape[4:])[:, :, :length]


def row_attention(q, k, v, *, causal: bool, lengths=None, documents_BxL=None):
    """A row as one block: a position reads itself and those before it (causal), or all. q, k, v: (B, L, H, K); lengths:
    (B,) positions in use, or None for L; the others are read by none. documents: (B, L) numbers, or None: all see all.
    Returns (B, L, H, K)."""
    length = q.shape[1]
    mask = _up_to_own_block(length, 1) if causal else None
    if lengths is not None:
        used = (jnp.arange(length) < lengths[:, None])[:, None, None, None]
        mask = used if mask is None else used & mask
    if documents_BxL is not None:
        same = (documents_BxL[:, :, None] == documents_BxL[:, None])[:, None, None]
        mask = same if mask is None else same & mask
    q, k, v = (x[:, None, None] for x in (q, k, v))
    return attend(q, k, v, mask, None, None)[:, 0, 0]


def cached_attention(q, k, v, cache: KVCache, context_lengths, *, block_size: int | None = None):
    """One block a sample against the cache. q, k, v: (B, C, S, H, K); cache: one layer's, (B, J, H, K);
    context_lengths: (B, C), how many cached positions each copy sees; block_size: of the blocks inside the block, whose
    positions see their own and those before it (1: causal); None: all see all. Returns (B, C, S, H, K)."""
    mask = jnp.arange(cache.k.shape[1]) < context_lengths[:, :, None, None, None]
    size = q.shape[2]
    own_mask = None if block_size is None or block_size >= size else _up_to_own_block(size, block_size)
    return attend(q[:, :, None], k[:, :, None], v[:, :, None], own_mask, cache, mask)[:, :, 0]


def _up_to_own_block(length: int, block_size: int):
    """(L, L) booleans, queries by keys."""
    block = np.arange(length) // block_size
    return jnp.asarray(block[:, None] >= block)


def append_to_cache(cache: KVCache, new: KVCache, at) -> KVCache:
    """Writes new (layers, B, S, H, K) into cache (layers, B, J, H, K) at each sample's position at (B,)."""

    def write(old_LxJ, new_LxS, start):
        return jax.lax.dynamic_update_slice(old_LxJ, new_LxS.astype(old_LxJ.dtype), (0, start, 0, 0))

    write_all = jax.vmap(write, in_axes=(1, 1, 0), out_axes=1)
    return KVCache(write_all(cache.k, new.k, at), write_all(cache.v, new.v, at))
