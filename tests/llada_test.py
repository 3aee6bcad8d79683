"""LLaDA's loss against the sum over every masking pattern and every order of a tiny vocabulary; its random numbers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from tiny_runs import PAD, make_stage

from colajax.keys import evaluation_draw, training_draw
from colajax.stages.base import TIME_BINS

WORDS, LENGTH, LEAST = 3, 3, 0.1
TEXTS = np.array(list(itertools.product(range(1, WORDS + 1), repeat=LENGTH)), np.int32)  # 0 is padding
PATTERNS = np.array(list(itertools.product((False, True), repeat=LENGTH)))


@pytest.fixture(scope="module")
def stage():
    stage, _ = make_stage("llada", f"llama.vocab_size={WORDS + 1}", f"sequence_length={LENGTH}")
    assert stage.objective.least_rate == LEAST
    return stage


@pytest.fixture(scope="module")
def params(stage):
    return {"llama": tiny_models.random_tree(stage.llama.shapes(), 3)}


@pytest.fixture(scope="module")
def nll(stage, params):
    """-log p(token | what the pattern leaves), (texts, patterns, LENGTH) float64, from the network alone."""
    tokens = np.repeat(TEXTS, len(PATTERNS), axis=0)
    view = np.where(np.tile(PATTERNS, (len(TEXTS), 1)), WORDS + 1, tokens)
    logits = np.asarray(stage.llama.bind(params["llama"])(view)[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, tokens[..., None], -1).reshape(len(TEXTS), len(PATTERNS), LENGTH)


def exact(nll, least: float) -> np.ndarray:
    """The expectation of the loss of each text, (texts,): over t in 0..1 by Gauss-Legendre, which is exact for these
    polynomials, and over all patterns by their probabilities."""
    nodes, shares = np.polynomial.legendre.leggauss(LENGTH)
    total = 0
    for t, share in zip((nodes + 1) / 2, shares / 2, strict=True):
        rate = (1 - least) * t + least
        for index, pattern in enumerate(PATTERNS):
            chance = np.prod(np.where(pattern, rate, 1 - rate))
            total = total + share * chance * nll[:, index][:, pattern].sum(-1) / rate / LENGTH
    return total


def test_without_a_least_rate_the_loss_is_the_mean_over_all_orders_of_the_chain_rule(nll):
    def given(order, position):
        """The index of the pattern in which this position and those behind it in the order are masked."""
        pattern = np.isin(np.arange(LENGTH), order[order.index(position) :])
        return int(np.flatnonzero((pattern == PATTERNS).all(-1))[0])

    orders = list(itertools.permutations(range(LENGTH)))
    chains = [sum(nll[:, given(order, i), i] for i in order) / LENGTH for order in orders]
    np.testing.assert_allclose(exact(nll, 0.0), np.mean(chains, axis=0), rtol=1e-12)


def test_the_loss_of_every_pattern_weighted_by_its_probability_is_the_exact_one(stage, params, nll):
    nodes, shares = np.polynomial.legendre.leggauss(LENGTH)
    rates = (1 - LEAST) * (nodes + 1) / 2 + LEAST

    def loss(tokens, pattern, rate):
        weight = jnp.where(pattern, 1 / rate, 0)[None]
        examples = {"tokens": tokens[None], "time": (rate[None] - LEAST) / (1 - LEAST), "weight": weight}
        terms = stage.terms(params, {}, examples, stage.groups, False)
        return stage.mean("masked_tokens", terms["masked_tokens"], stage.counts(examples))

    over = jax.vmap(jax.vmap(jax.vmap(loss, (None, None, 0)), (None, 0, None)), (0, None, None))
    found = np.asarray(jax.jit(over)(TEXTS, PATTERNS, rates.astype(np.float32)))  # (texts, patterns, rates)
    chance = np.prod(np.where(PATTERNS[:, None], rates[:, None], 1 - rates[:, None]), axis=-1)
    np.testing.assert_allclose(np.einsum("xpr,pr,r->x", found, chance, shares / 2), exact(nll, LEAST), rtol=1e-5)


def test_the_mean_of_what_is_drawn_is_the_exact_sum(stage, params, nll):
    rows, times = 81_000, 3000
    tokens = np.tile(TEXTS, (times, 1))
    draw = training_draw(0, 0, jnp.arange(rows))
    examples = jax.jit(lambda tokens: stage.examples(tokens, draw))(tokens)
    index = (np.asarray(examples["weight"]) > 0) @ (2 ** np.arange(LENGTH)[::-1])
    of_rows = (np.asarray(examples["weight"]) * nll[np.arange(rows) % len(TEXTS), index]).sum(-1) / LENGTH
    error = of_rows.std() / np.sqrt(rows)
    assert error < 0.01 * of_rows.mean()
    assert of_rows.mean() == pytest.approx(exact(nll, LEAST).mean(), abs=4 * error)
    terms = jax.jit(lambda e: stage.terms(params, {}, e, stage.groups, False))(examples)
    mean = stage.mean("masked_tokens", terms["masked_tokens"], stage.counts(examples))
    np.testing.assert_allclose(mean, of_rows.mean(), rtol=1e-4)


def test_rows_have_a_rate_each_and_their_weights_are_its_inverse():
    stage, _ = make_stage("llada")
    tokens = np.ones((4000, 32), np.int32)
    tokens[:, 24:] = PAD
    examples = jax.device_get(stage.examples(jnp.asarray(tokens), training_draw(0, 1, jnp.arange(4000))))
    rate, weight = LEAST + (1 - LEAST) * examples["time"], examples["weight"]
    assert not weight[:, 24:].any()
    masked = weight > 0
    np.testing.assert_allclose(weight[masked], np.repeat(1 / rate, masked.sum(-1)), rtol=1e-6)
    tenths = np.minimum(examples["time"] * TIME_BINS, TIME_BINS - 1).astype(int)
    assert np.bincount(tenths, minlength=TIME_BINS).min() > 300
    for tenth in range(TIME_BINS):
        rows = tenths == tenth
        mean, of = masked[rows, :24].mean(), rate[rows].mean()
        assert mean == pytest.approx(of, abs=4 * np.sqrt(of * (1 - of) / (24 * rows.sum())) + 1e-9)


def test_a_batch_is_cut_as_a_whole_to_any_length_at_the_rate():
    stage, _ = make_stage("llada", "objective.cut_probability=0.5")
    tokens = np.ones((4, 32), np.int32)

    @jax.jit
    def lengths(step, indices):
        examples = stage.examples(tokens, training_draw(3, step, indices))
        return (examples["tokens"] != PAD).sum(-1)

    found = np.array([lengths(step, jnp.arange(4)) for step in range(300)])
    assert (found == found[:, :1]).all()
    np.testing.assert_array_equal(lengths(7, jnp.array([60, 2, 9, 5])), found[7])  # any part of the batch
    kept = found[:, 0]
    whole = 0.5 + 0.5 / 32
    assert np.mean(kept == 32) == pytest.approx(whole, abs=4 * np.sqrt(whole * (1 - whole) / 300))
    assert len(set(kept)) > 25
    # A held-out row is cut, or not, for itself, whatever the batch it is in.
    held_out = stage.examples(np.ones((200, 32), np.int32), evaluation_draw(jnp.arange(200)))["tokens"] != PAD
    assert len(set(np.asarray(held_out.sum(-1)))) > 20


def test_a_cut_row_is_the_row_of_that_length():
    """What is behind the cut changes nothing in the loss."""
    stage, _ = make_stage("llada")
    params = {"llama": tiny_models.random_tree(stage.llama.shapes(), 3)}
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 40, (2, 32)).astype(np.int32)
    weight = np.where(rng.random((2, 32)) < 0.5, 2.0, 0.0).astype(np.float32)
    tokens[:, 20:], weight[:, 20:] = PAD, 0
    time = np.full(2, 0.5, np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(length):
        examples = {"tokens": tokens[:, :length], "weight": weight[:, :length], "time": time}
        terms = stage.terms(params, {}, examples, stage.groups, False)
        return stage.mean("masked_tokens", terms["masked_tokens"], stage.counts(examples))

    np.testing.assert_allclose(loss(32), loss(20), rtol=1e-6)
