"""Flow matching on latents: path z_t = (1-t) z0 + t z1, target velocity u = z1 - z0 (paper, section on the prior)."""

import jax
import jax.numpy as jnp
import numpy as np


def interpolate(z0_BxLxD, z1_BxLxD, t_B):
    """z_t for latents and one time a sample."""
    t = t_B[:, None, None]
    return (1 - t) * z0_BxLxD + t * z1_BxLxD


def logit_normal(normal_B, loc: float, scale: float):
    """Times (B,) in (0, 1) from standard normals (the uniform distribution of times is the ablation)."""
    return jax.nn.sigmoid(loc + scale * normal_B)


def unit_floor(t):
    """The least mean squared error at time t for unit-variance Gaussian latents without context, per channel."""
    return 1.0 / ((1 - t) ** 2 + t**2)


def gaussian_floor(t, variances_D):
    """The same for a Gaussian with these variances along its principal axes, mean over the D channels; t: (R,) -> (R,).

    With u = z1 - z0 and z_t jointly Gaussian, Var(u | z_t) = v / ((1-t)^2 v + t^2) along an axis of variance v.
    """
    v = np.asarray(variances_D)[None, :]
    t = np.asarray(t)[:, None]
    return (v / ((1 - t) ** 2 * v + t**2)).mean(-1)


def given_positions(start_uniform_BxN, cut_uniform_BxN, block_size: int, probability: float):
    """Which latents of a block are handed over clean, (B, N * block_size) booleans.

    With `probability` a block is cut at a point from 1 to block_size - 1 and its head given, as the first block of a
    generation is where a prompt ends inside it. Blocks of one latent have no such point.
    """
    if block_size == 1:
        return jnp.zeros(start_uniform_BxN.shape, bool)
    cut = 1 + jnp.floor(cut_uniform_BxN * (block_size - 1)).astype(jnp.int32)
    cut = jnp.where(start_uniform_BxN < probability, cut, 0)
    given = jnp.arange(block_size) < cut[..., None]
    return given.reshape(given.shape[0], -1)
