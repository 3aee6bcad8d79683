"""The terms of the VAE's objective, per position, as functions of arrays (paper, stage 1 and stage 2).

KL divergences and entropies are summed over the D latent channels; whoever adds them up takes the mean over positions.
"""

import math

import jax
import jax.numpy as jnp


def cross_entropy(logits_BxTxV, tokens_BxT):
    """-log p(x | z) of each token, (B, T) float32, in nats."""
    logits = logits_BxTxV.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - logit_of(logits, tokens_BxT)


def logit_of(logits_BxTxV, tokens_BxT):
    """The logit of each token, (B, T): a sum and not a lookup, so that a vocabulary divided over devices stays so."""
    is_chosen = jnp.arange(logits_BxTxV.shape[-1]) == tokens_BxT[..., None]
    return jnp.where(is_chosen, logits_BxTxV, 0).sum(-1)


def sample_posterior(mean, logvar, noise):
    """z0 ~ q(z0 | x) by reparameterisation; all (B, L, D). Without a variance (logvar None) the mean itself."""
    return mean if logvar is None else mean + jnp.exp(0.5 * logvar) * noise


def kl_to_standard_normal(mean, logvar):
    """KL(q || N(0, I)), (B, L), in nats."""
    return 0.5 * (jnp.exp(logvar) + mean**2 - 1.0 - logvar).sum(-1)


def negative_entropy(logvar):
    """E log q = -H(q) of a diagonal Gaussian, (B, L), in nats."""
    return -0.5 * (logvar + math.log(2 * math.pi) + 1.0).sum(-1)


def kl_between(mean, logvar, reference_mean, reference_logvar):
    """KL(q || q_ref) of diagonal Gaussians in closed form, (B, L), in nats; without variances (both logvar None) as of
    unit Gaussians, half the squared distance of the means."""
    if logvar is None:
        return 0.5 * ((mean - reference_mean) ** 2).sum(-1)
    spread = jnp.exp(logvar - reference_logvar)
    shift = (mean - reference_mean) ** 2 * jnp.exp(-reference_logvar)
    return 0.5 * (spread + shift - 1.0 + reference_logvar - logvar).sum(-1)


def fixed_logvar(mean, log_snr: float):
    """The logvar (B, L, D) that gives every latent this log signal-to-noise ratio: the paper's fixed-variance VAE."""
    signal = jax.lax.stop_gradient(jnp.log((mean**2).mean(-1, keepdims=True) + 1e-12))
    return jnp.broadcast_to(signal - log_snr, mean.shape)
