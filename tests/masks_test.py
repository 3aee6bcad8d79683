"""Who sees whom, by gradients: exactly zero where a position may not be seen, and not zero where it must be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from colajax.hf import layout
from colajax.models.attention import KVCache
from colajax.models.layers import Functional

SIZE, LATENTS, SAMPLES = 4, 10, 2  # two whole blocks and a part of one
BLOCK = np.arange(LATENTS) // SIZE
EARLIER, SAME = BLOCK[:, None] > BLOCK[None, :], BLOCK[:, None] == BLOCK[None, :]
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def influence(function, x, features: int):
    """Absolute gradients of every output position by every input position, (outputs, inputs).

    function: x -> (..., out), one feature axis; the last `features` axes of x are summed over."""
    shape = jax.eval_shape(function, x).shape
    mix = normal(*shape)  # one weighted sum a position, whose gradient vanishes only if the position is not seen
    jacobian = jax.jit(jax.jacrev(lambda x: (function(x) * mix).sum(-1).reshape(-1)))(x)
    jacobian = np.abs(np.asarray(jacobian))
    return jacobian.reshape(len(jacobian), -1, int(np.prod(x.shape[x.ndim - features :]))).sum(-1)


def per_sample(mask):
    """The mask of each sample, none between samples."""
    return np.kron(np.eye(SAMPLES, dtype=bool), mask)


def module_of(kind, config):
    return Functional(kind.make, config).bind(tiny_models.random_params(kind, config))


@pytest.mark.parametrize("patch", [1, 2])
def test_encoder(patch):
    config = dataclasses.replace(tiny_models.VAE, patch_size=patch)
    vae, params = Functional(layout.VAE.make, config), tiny_models.random_params(layout.VAE, config)
    # Each position its own token, so that a row of the table stands for a position.
    tokens = rng.permutation(config.vocab_size)[: SAMPLES * LATENTS * patch]

    def outputs(table):
        with_table = params | {"encoder": params["encoder"] | {"embedding": {"embedding": table}}}
        return jnp.concatenate(vae.bind(with_table).encoder(tokens.reshape(SAMPLES, -1)), axis=-1)

    seen = influence(outputs, params["encoder"]["embedding"]["embedding"], 1)[:, tokens]
    np.testing.assert_array_equal(seen > 0, np.repeat(per_sample(EARLIER | SAME), patch, axis=1))


@pytest.mark.parametrize("patch", [1, 2])
def test_decoder(patch):
    decoder = module_of(layout.VAE, dataclasses.replace(tiny_models.VAE, patch_size=patch)).decoder
    seen = influence(lambda z: decoder(z)[0], normal(SAMPLES, LATENTS, 4), 1)
    np.testing.assert_array_equal(seen > 0, np.repeat(per_sample(EARLIER | SAME), patch, axis=0))


@pytest.mark.parametrize("block_causal", [True, False])
def test_unused_positions_are_not_seen(block_causal):
    decoder = module_of(layout.VAE, dataclasses.replace(tiny_models.VAE, block_causal=block_causal)).decoder
    lengths = np.array([6, 10])
    seen = influence(lambda z: decoder(z, lengths=jnp.asarray(lengths))[0], normal(SAMPLES, LATENTS, 4), 1)
    seen = seen.reshape(SAMPLES, LATENTS, SAMPLES, LATENTS) > 0
    mask = EARLIER | SAME if block_causal else np.ones_like(SAME)
    for i, n in enumerate(lengths):
        np.testing.assert_array_equal(seen[i, :n, i, :n], mask[:n, :n])
        assert not seen[i, :n, i, n:].any()
        assert not seen[i, :, 1 - i].any()


TIMES = np.array([0.3, 0.8], np.float32)


def two_copies(dit, z, times=TIMES, **masks):
    is_noisy = np.broadcast_to(np.array([False, True])[:, None], z.shape[:3])
    return dit(z, times, is_noisy, jnp.arange(LATENTS), **masks)[0]


def test_prior_on_two_copies():
    dit = module_of(layout.DIT, tiny_models.DIT)
    seen = influence(lambda z: two_copies(dit, z), normal(SAMPLES, 2, LATENTS, 4), 1)
    nothing = np.zeros_like(SAME)
    clean_then_noisy = np.block([[EARLIER | SAME, nothing], [EARLIER, SAME]])
    np.testing.assert_array_equal(seen > 0, per_sample(clean_then_noisy))


def test_prior_sees_no_unused_position():
    dit, n = module_of(layout.DIT, tiny_models.DIT), 6
    seen = influence(lambda z: two_copies(dit, z, lengths=jnp.full(SAMPLES, n)), normal(SAMPLES, 2, LATENTS, 4), 1)
    seen = seen.reshape(SAMPLES, 2, LATENTS, SAMPLES, 2, LATENTS)[:, :, :n] > 0
    assert not seen[..., n:].any()
    np.testing.assert_array_equal(seen[0, 0, :, 0, 0, :n], (EARLIER | SAME)[:n, :n])
    np.testing.assert_array_equal(seen[0, 1, :, 0, 1, :n], SAME[:n, :n])


def test_a_time_reaches_only_its_own_noisy_positions():
    dit, z = module_of(layout.DIT, tiny_models.DIT), normal(SAMPLES, 2, LATENTS, 4)
    seen = influence(lambda times: two_copies(dit, z, times), TIMES, 0)
    only_noisy = np.repeat([False, True], LATENTS)[:, None]
    np.testing.assert_array_equal(seen > 0, per_sample(only_noisy))


def test_a_block_sees_as_much_of_the_cache_as_it_is_told():
    dit, config = module_of(layout.DIT, tiny_models.DIT), tiny_models.DIT
    z, is_noisy = normal(SAMPLES, 2, SIZE, 4), np.ones((SAMPLES, 2, SIZE), bool)
    shape = (config.num_layers, SAMPLES, LATENTS, config.heads, config.head_dim)
    lengths = np.array([[8, 0], [3, 0]])

    keys_and_values = normal(SAMPLES, LATENTS, config.num_layers, 2, config.heads, config.head_dim)

    def arranged(x):  # (B, J, layers, 2, H, K) -> keys and values of (layers, B, J, H, K)
        x = jnp.moveaxis(x, (3, 2), (0, 1))
        assert x.shape[1:] == shape
        return KVCache(x[0], x[1])

    def velocity(x):
        positions = lengths[..., None] + np.arange(SIZE)
        one = np.ones(1, np.float32)
        return dit(z, one, is_noisy, positions, cache=arranged(x), context_lengths=jnp.asarray(lengths))[0]

    seen = influence(velocity, keys_and_values, 4).reshape(SAMPLES, 2, SIZE, SAMPLES, LATENTS) > 0
    expected = np.arange(LATENTS) < lengths[..., None]
    for i in range(SAMPLES):
        np.testing.assert_array_equal(seen[i, :, :, i], np.repeat(expected[i][:, None], SIZE, axis=1))
        assert not seen[i, :, :, 1 - i].any()
