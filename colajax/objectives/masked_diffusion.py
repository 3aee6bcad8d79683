"""The objective of LLaDA: a share of a row's tokens, drawn for the row, is masked and predicted from the others.

loss = sum over masked tokens of -log p(token | the others) / rate, over all tokens of the batch. Its expectation is at
least -log p(row) for each row (Nie et al. 2025, "Large Language Diffusion Models").
"""

import jax.numpy as jnp


def masking_rate(t_B, least: float):
    """The probability with which a token is masked at time t in 0..1, (B,): t, but never less than `least`."""
    return (1 - least) * t_B + least


def mask_weights(uniform_BxT, rate_B, is_text_BxT):
    """What each token counts in the loss, (B, T) float32: 1 / rate where it is masked, or else 0; padding never is."""
    masked = is_text_BxT & (uniform_BxT < rate_B[:, None])
    return jnp.where(masked, 1 / rate_B[:, None], 0.0)


def cut_lengths(uniform_Bx2, length: int, probability: float):
    """How much of a row of `length` is kept, (B,): with `probability` any length from 1 to `length`, or else all."""
    cut = 1 + jnp.floor(uniform_Bx2[:, 1] * length).astype(jnp.int32)
    return jnp.where(uniform_Bx2[:, 0] < probability, cut, length)
