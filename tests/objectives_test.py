"""The terms of the objectives, against numerical integration, conditional Gaussians and samples."""

import math
from statistics import NormalDist

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colajax import keys
from colajax.objectives import elbo
from colajax.objectives import flow_matching as fm

B, L, D = 2, 3, 4


def _posterior(seed):
    """Means and log-variances (B, L, D) of narrow, unit and wide Gaussians."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1.5, (B, L, D)).astype(np.float32), rng.uniform(-4, 2, (B, L, D)).astype(np.float32)


def _log_density(x, mean, logvar):
    return -0.5 * ((x - mean) ** 2 / math.exp(logvar) + logvar + math.log(2 * math.pi))


def _expectation(mean, logvar, function):
    """E_q of function(x) by the trapezoid rule over twelve standard deviations each way, one channel."""
    x = mean + np.linspace(-12, 12, 20001) * math.exp(logvar / 2)
    return np.trapezoid(np.exp(_log_density(x, mean, logvar)) * function(x), x)


def _summed_over_channels(mean, logvar, function_of_channel):
    """(B, L): the expectation of function_of_channel(b, latent, d)(x), summed over d, in float64."""
    mean, logvar = mean.astype(np.float64), logvar.astype(np.float64)
    total = np.zeros((B, L))
    for at in np.ndindex(B, L, D):
        total[at[:2]] += _expectation(mean[at], logvar[at], function_of_channel(*at))
    return total


def test_kl_to_standard_normal_is_the_integral():
    mean, logvar = _posterior(0)

    def log_ratio(*at):
        return lambda x: _log_density(x, mean[at], logvar[at]) - _log_density(x, 0.0, 0.0)

    np.testing.assert_allclose(
        elbo.kl_to_standard_normal(mean, logvar), _summed_over_channels(mean, logvar, log_ratio), rtol=1e-5
    )


def test_kl_between_is_the_integral_and_zero_at_itself():
    mean, logvar = _posterior(0)
    reference_mean, reference_logvar = _posterior(1)

    def log_ratio(*at):
        return lambda x: (
            _log_density(x, mean[at], logvar[at]) - _log_density(x, reference_mean[at], reference_logvar[at])
        )

    found = elbo.kl_between(mean, logvar, reference_mean, reference_logvar)
    np.testing.assert_allclose(found, _summed_over_channels(mean, logvar, log_ratio), rtol=1e-5)
    np.testing.assert_array_equal(elbo.kl_between(mean, logvar, mean, logvar), 0)


def test_negative_entropy_is_the_integral():
    mean, logvar = _posterior(2)

    def log_density(*at):
        return lambda x: _log_density(x, mean[at], logvar[at])

    np.testing.assert_allclose(
        elbo.negative_entropy(logvar), _summed_over_channels(mean, logvar, log_density), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("dtype", "spread"), [(jnp.float32, 3.0), (jnp.float32, 1e4), (jnp.bfloat16, 3.0)])
def test_cross_entropy_is_float64_log_softmax(dtype, spread):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, spread, (2, 5, 17)), dtype)
    tokens = rng.integers(0, 17, (2, 5))
    exact = np.asarray(logits).astype(np.float64)
    shifted = exact - exact.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    expected = [[-log_p[b, t, tokens[b, t]] for t in range(5)] for b in range(2)]
    found = elbo.cross_entropy(logits, tokens)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_posterior_samples_have_its_moments():
    mean, logvar = _posterior(3)
    noise = jax.random.normal(jax.random.key(0), (40_000, B, L, D))
    z = np.asarray(jax.vmap(elbo.sample_posterior, in_axes=(None, None, 0))(mean, logvar, noise), np.float64)
    std = np.exp(logvar / 2)
    np.testing.assert_allclose((z.mean(0) - mean) / std, 0, atol=5 / math.sqrt(len(z)))
    np.testing.assert_allclose(z.std(0) / std, 1, atol=5 / math.sqrt(2 * len(z)))
    np.testing.assert_array_equal(elbo.sample_posterior(mean, None, noise[0]), mean)


@pytest.mark.parametrize("log_snr", [0.0, 1.5, 4.5])
def test_fixed_logvar_gives_every_latent_the_ratio(log_snr):
    mean, _ = _posterior(4)
    logvar = np.asarray(elbo.fixed_logvar(mean, log_snr), np.float64)
    found = np.log((mean.astype(np.float64) ** 2).mean(-1) / np.exp(logvar).mean(-1))
    assert logvar.shape == mean.shape
    np.testing.assert_allclose(found, log_snr, atol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda m: elbo.fixed_logvar(m, log_snr).sum())(mean), 0)


def test_floor_is_the_conditional_variance_of_the_joint_gaussian():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    variances = np.array([0.05, 0.7, 2.0])
    covariance, times = axes @ np.diag(variances) @ axes.T, np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    expected = []
    for t in times:
        of_z = (1 - t) ** 2 * covariance + t**2 * np.eye(3)
        u_with_z = t * np.eye(3) - (1 - t) * covariance
        conditional = np.eye(3) + covariance - u_with_z @ np.linalg.solve(of_z, u_with_z.T)
        expected.append(np.trace(conditional) / 3)
    np.testing.assert_allclose(fm.gaussian_floor(times, variances), expected, rtol=1e-9)
    np.testing.assert_allclose(fm.unit_floor(times), fm.gaussian_floor(times, np.ones(3)), rtol=1e-12)


@pytest.mark.parametrize("variance", [0.3, 1.0])
def test_floor_is_what_least_squares_leaves_on_samples_of_the_path(variance):
    rng, times = np.random.default_rng(0), np.array([0.15, 0.5, 0.8], np.float32)
    z0 = (rng.standard_normal((3, 100_000, 1)) * math.sqrt(variance)).astype(np.float32)
    z1 = rng.standard_normal(z0.shape).astype(np.float32)
    z_t = np.asarray(fm.interpolate(z0, z1, times))
    for i, floor in enumerate(fm.gaussian_floor(times, [variance])):
        u = (z1 - z0)[i, :, 0]
        design = np.stack([z_t[i, :, 0], np.ones_like(u)], -1)
        residual = u - design @ np.linalg.lstsq(design, u, rcond=None)[0]
        assert np.mean(residual**2) == pytest.approx(floor, rel=0.02)


def test_path_runs_from_the_latent_to_the_noise():
    z0, z1 = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(fm.interpolate(z0, z1, np.zeros(3, np.float32)), z0)
    np.testing.assert_array_equal(fm.interpolate(z0, z1, np.ones(3, np.float32)), z1)
    early, late = np.full(3, 0.25, np.float32), np.full(3, 0.75, np.float32)
    velocity = (fm.interpolate(z0, z1, late) - fm.interpolate(z0, z1, early)) / 0.5
    np.testing.assert_allclose(velocity, z1 - z0, atol=1e-5)


@pytest.mark.parametrize(("loc", "scale"), [(1.0, 1.0), (-0.5, 0.3)])
def test_times_have_the_distribution(loc, scale):
    count = 40_000
    drawn = keys.sample_keys(0, keys.Purpose.TIME, 0, np.arange(count))
    times = np.asarray(fm.logit_normal(keys.normals(drawn, ()), loc, scale))
    for quantile in (0.05, 0.3, 0.5, 0.7, 0.95):
        point = 1 / (1 + math.exp(-(loc + scale * NormalDist().inv_cdf(quantile))))
        assert np.mean(times < point) == pytest.approx(quantile, abs=4 * math.sqrt(quantile * (1 - quantile) / count))


UNIFORM = st.floats(0, 1 - 2**-23, width=32)  # up to the largest that jax.random.uniform draws


@hypothesis.given(
    block_size=st.integers(1, 128), probability=st.floats(0, 1),
    draws=st.lists(st.tuples(UNIFORM, UNIFORM), min_size=4, max_size=4),
)  # fmt: skip
@hypothesis.settings(deadline=None, max_examples=60)
def test_given_positions_are_heads_of_the_chosen_blocks(block_size, probability, draws):
    start, cut = np.array(draws, np.float32).T.reshape(2, 2, 2)
    given = np.asarray(fm.given_positions(start, cut, block_size, probability))
    assert given.shape == (2, 2 * block_size)
    for block, chosen in zip(given.reshape(4, block_size), (start < np.float32(probability)).ravel(), strict=True):
        count = int(block.sum())
        assert block[:count].all()
        assert not block[count:].any()
        assert 1 <= count < block_size if chosen and block_size > 1 else count == 0


def test_given_cuts_are_uniform_and_as_frequent_as_asked():
    blocks, block_size = 40_000, 5
    start, cut = jax.random.uniform(jax.random.key(0), (2, 1, blocks))
    given = np.asarray(fm.given_positions(start, cut, block_size, 0.25)).reshape(blocks, block_size)
    shares = np.bincount(given.sum(-1), minlength=block_size) / blocks
    np.testing.assert_allclose(shares, [0.75, *[0.25 / 4] * 4], atol=0.01)


def test_every_sample_purpose_step_and_seed_has_a_key_of_its_own():
    drawn = [
        jax.random.key_data(keys.sample_keys(seed, purpose, step, np.arange(5)))
        for seed in (0, 1) for purpose in keys.Purpose for step in (0, 1)
    ]  # fmt: skip
    data = np.concatenate(drawn)
    assert len(np.unique(data, axis=0)) == len(data) == 2 * len(keys.Purpose) * 2 * 5


def test_draws_of_a_sample_do_not_depend_on_the_others():
    def draw(indices):
        drawn = keys.sample_keys(7, keys.Purpose.NOISE, 3, indices)
        return np.asarray(keys.normals(drawn, (4,))), np.asarray(keys.uniforms(drawn, (4,)))

    for whole, part in zip(draw(np.arange(8)), draw(np.array([6, 2])), strict=True):
        np.testing.assert_array_equal(part, whole[[6, 2]])
