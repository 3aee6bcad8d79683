"""The autoregressive objective: every token of a row from those before it."""

import jax.numpy as jnp


def next_tokens(tokens_BxT, pad_id: int, documents_BxT=None):
    """(targets (B, T), weights (B, T) float32 of 0 or 1): the token behind each position, also where that is the first
    of the row's next document, unless the number of each token's document is given: then a document is predicted as in
    a row of its own, its first token from nothing. Padding is no target, and the last position has none."""
    targets = jnp.roll(tokens_BxT, -1, axis=1)
    has_next = jnp.arange(tokens_BxT.shape[1]) < tokens_BxT.shape[1] - 1
    is_target = has_next & (targets != pad_id)
    if documents_BxT is not None:
        is_target &= jnp.roll(documents_BxT, -1, axis=1) == documents_BxT
    return targets, is_target.astype(jnp.float32)
