"""The losses against one sample at a time, accumulation, what carries gradients, and what a step changes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import PAD, ROWS, VOCABULARY, make_frozen, make_params, make_stage, make_tokens

from colajax.keys import training_draw
from colajax.models.text_vae import normalise
from colajax.parallel.mesh import ONE_DEVICE, make_mesh
from colajax.parallel.rules import replicated
from colajax.stages.joint import JointStage
from colajax.stages.llama import LlamaStage
from colajax.train.optimizer import make_optimizer
from colajax.train.state import TrainState
from colajax.train.step import batch_gradients, loss_and_means, make_train_step, watched

MESH = make_mesh(ONE_DEVICE, jax.devices()[:1])


@pytest.fixture(scope="module", params=["vae", "joint", "ar", "llada"])
def case(request):
    """(stage, configuration, state, examples)"""
    stage, config = make_stage(request.param)
    params = make_params(stage)
    state = TrainState(jnp.int32(0), params, {}, make_frozen(stage))
    return stage, config, state, stage.examples(jnp.asarray(make_tokens()), training_draw(1, 5, jnp.arange(ROWS)))


@pytest.fixture(scope="module")
def gradients(case):
    """{parts: (gradients by group, means)}"""
    stage, _, state, examples = case
    run = jax.jit(functools.partial(batch_gradients, stage), static_argnums=(2, 3))
    return {parts: run(state, examples, stage.groups, parts) for parts in (1, 4)}


def gaussian_kl(mean, logvar, other_mean, other_logvar):
    ratio = jnp.exp(logvar) / jnp.exp(other_logvar)
    return ((ratio - jnp.log(ratio) + (mean - other_mean) ** 2 / jnp.exp(other_logvar) - 1) / 2).sum(-1)


def slow_means(stage, params, clean_encoder, frozen, examples, mask_every):
    """The terms of the loss as the description of the model has them, one sample at a time: {term: mean over the
    batch's tokens, masked tokens, latents or predicted latents}. clean_encoder: of the copy that conditions the prior.
    """
    vae_config, patch = stage.vae_config, stage.vae_config.patch_size

    def total_and_count(values, where):
        return (values * where).sum(), where.sum()

    @jax.jit
    def terms_of(params, clean_encoder, sample):
        """{term: (sum, count)} of one sample"""
        vae = stage.vae.bind(params["vae"])
        tokens, text = sample["tokens"], sample["tokens"] != PAD
        latent = text.reshape(-1, patch).any(-1)

        def nll(z):
            log_p = jax.nn.log_softmax(vae.decoder(normalise(vae_config, z))[0])[0]
            return -(log_p * (tokens[:, None] == jnp.arange(VOCABULARY))).sum(-1)

        mean, logvar = vae.encoder(tokens[None])
        z0 = mean + jnp.exp(logvar / 2) * sample["posterior_noise"]
        seen_mean, seen_logvar = vae.encoder(jnp.where(sample["masked"], VOCABULARY, tokens)[None])
        seen_z0 = seen_mean + jnp.exp(seen_logvar / 2) * sample["masked_posterior_noise"]
        terms = {
            "reconstruction": total_and_count(nll(z0), text),
            "mask": total_and_count(nll(seen_z0), sample["masked"] & text),
        }
        if not isinstance(stage, JointStage):
            return terms | {"kl": total_and_count(gaussian_kl(mean, logvar, 0.0, jnp.zeros_like(logvar))[0], latent)}
        entropy = (jnp.log(2 * jnp.pi * jnp.e * jnp.exp(logvar)) / 2).sum(-1)
        reference = stage.encoder.bind(frozen["reference"])(tokens[None])
        clean_mean, clean_logvar = stage.encoder.bind(clean_encoder)(tokens[None])
        clean = normalise(vae_config, clean_mean + jnp.exp(clean_logvar / 2) * sample["posterior_noise"])
        z, z1, t, given = normalise(vae_config, z0), sample["noise"], sample["time"], sample["given"]
        z_t = jnp.where(given[:, None], clean, (1 - t) * z + t * z1)
        noisy = jnp.stack([jnp.zeros_like(given), ~given])
        dit = stage.dit.bind(params["dit"])
        velocity = dit(jnp.stack([clean, z_t], 1), t[None], noisy[None], jnp.arange(len(given)))[0][0, 1]
        return terms | {
            "negative_entropy": total_and_count(-entropy[0], latent),
            "kl_reference": total_and_count(gaussian_kl(mean, logvar, *reference)[0], latent),
            "flow": total_and_count(((velocity - (z1 - z[0])) ** 2).mean(-1), latent & ~given),
        }

    by_sample = [terms_of(params, clean_encoder, jax.tree.map(lambda a, i=i: a[i], examples)) for i in range(ROWS)]

    def mean_of(name):
        chosen = [terms[name] for i, terms in enumerate(by_sample) if name != "mask" or i % mask_every == 0]
        return sum(total for total, _ in chosen) / sum(count for _, count in chosen)

    return {name: mean_of(name) for name in by_sample[0]}


def slow_llama_loss(stage, params, examples):
    """The loss of a baseline, one sample at a time; padding is not even there."""
    total, count, examples = 0, 0, jax.device_get(examples)
    llama = stage.llama.bind(params["llama"])
    for row in range(ROWS):
        tokens, weight = examples["tokens"][row], examples["weight"][row]
        used = int((tokens != PAD).sum())
        tokens, masked = tokens[:used], weight[:used] > 0
        seen = tokens if stage.causal else np.where(masked, VOCABULARY, tokens)
        log_p = jax.nn.log_softmax(llama(seen[None])[0])[0]
        if stage.causal:
            total -= log_p[np.arange(used - 1), tokens[1:]].sum()
            count += used - 1
        else:
            rate = 0.1 + 0.9 * float(examples["time"][row])
            total -= log_p[np.arange(used), tokens][masked].sum() / rate
            count += used
    return total / count


class Described(NamedTuple):
    loss: float
    gradients: dict  # of the loss, by group, the clean copy held fast
    flow_gradients: dict | None = None  # of the flow loss alone
    flow_gradients_of_clean: dict | None = None  # of it, by the encoder of the clean copy, were it not held fast


@pytest.fixture(scope="module")
def described(case):
    stage, config, state, examples = case
    if isinstance(stage, LlamaStage):
        described = jax.jit(jax.value_and_grad(lambda params: slow_llama_loss(stage, params, examples)))
        return Described(*described(state.params))
    o = config.objective
    weights = {"reconstruction": 1, "kl": o.beta, "mask": o.lambda_mask}
    if isinstance(stage, JointStage):
        weights = {name: o.lambda_vae * weight for name, weight in weights.items()}
        weights["negative_entropy"] = weights.pop("kl")
        weights |= {"flow": o.lambda_fm, "kl_reference": o.lambda_ref}

    def means_of(params, clean_encoder):
        return slow_means(stage, params, clean_encoder, state.frozen, examples, o.mask_every)

    means, pull_back = jax.vjp(means_of, state.params, state.params["vae"]["encoder"])
    assert means.keys() == weights.keys()
    gradients, _ = pull_back({name: jnp.float32(weight) for name, weight in weights.items()})
    flow_gradients = pull_back({name: jnp.float32(name == "flow") for name in weights})
    return Described(sum(weight * means[name] for name, weight in weights.items()), gradients, *flow_gradients)


def norm(tree) -> float:
    return float(jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree))))


def assert_close(found, expected, tolerance):
    """Every group of gradients to within `tolerance` of its norm."""
    assert found.keys() == expected.keys()
    for group in expected:
        assert norm(expected[group]) > 0.01, group
        difference = norm(jax.tree.map(jnp.subtract, found[group], expected[group]))
        assert difference <= tolerance * norm(expected[group]), group


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def differ(found, expected) -> bool:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


def test_parts_of_the_batch_have_other_denominators(case):
    """Or the next test would show less than it says."""
    stage, _, _, examples = case
    halves = [stage.counts(jax.tree.map(lambda a, h=h: a[4 * h : 4 * h + 4], examples)) for h in (0, 1)]
    for name in halves[0].keys() - {"noisy_by_time", "masked_by_time"}:
        assert halves[0][name] != halves[1][name], name


def test_accumulation_changes_neither_loss_nor_gradients(gradients):
    (found, means), (expected, expected_means) = gradients[4], gradients[1]
    np.testing.assert_allclose(means["loss"], expected_means["loss"], rtol=1e-6)
    for name in expected_means:
        np.testing.assert_allclose(means[name], expected_means[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert_close(found, expected, 1e-5)


def test_loss_and_gradients_are_the_description_s(described, gradients):
    found, means = gradients[1]
    np.testing.assert_allclose(means["loss"], described.loss, rtol=1e-5)
    assert_close(found, described.gradients, 1e-4)


@pytest.mark.parametrize("case", ["vae", "joint"], indirect=True)
def test_flow_loss_shapes_the_encoder_and_what_is_stopped_is_not_small(case, described):
    """So that the test before this one sees a stop that is missing, and one too many."""
    stage, _, _, _ = case
    of_encoder = norm(described.gradients["vae"]["encoder"])
    if isinstance(stage, JointStage):
        assert norm(described.flow_gradients["vae"]["encoder"]) > 0.01 * of_encoder
        assert norm(described.flow_gradients_of_clean) > 0.01 * of_encoder
    assert norm(described.flow_gradients["vae"]["decoder"]) == 0


def run_steps(stage, config, count, params=None, start=0, frozen=None):
    """(state before, state after `count` steps, means of the last)."""
    params = make_params(stage) if params is None else params
    optimizer = make_optimizer(config.optimizer, params, config.total_steps)
    frozen = make_frozen(stage) if frozen is None else frozen
    state = TrainState(jnp.int32(start), params, optimizer.init(params), frozen)
    before = jax.tree.map(np.asarray, state)
    state = jax.device_put(before, replicated(MESH))
    step = make_train_step(stage, optimizer, state, seed=config.seed, parts=config.accumulation_steps)
    for n in range(start, start + count):
        limits = dict.fromkeys(watched(stage, stage.trainable(n)), np.float32(np.inf))
        state, means = step(state, jnp.asarray(make_tokens(n)), np.int32(n), limits, stage.trainable(n))
    return before, jax.tree.map(np.asarray, state), means


def test_an_update_draws_for_the_step_it_starts_from():
    stage, config = make_stage("vae")
    before, after, means = run_steps(stage, config, 1, start=5)
    assert after.step == 6
    assert differ(after.params["vae"]["decoder"]["head"], before.params["vae"]["decoder"]["head"])
    losses = {}
    for step in (5, 6):
        examples = stage.examples(jnp.asarray(make_tokens(5)), training_draw(config.seed, step, jnp.arange(ROWS)))
        losses[step], _ = loss_and_means(
            stage, before.params, before.frozen, examples, stage.counts(examples), stage.groups
        )
    np.testing.assert_allclose(means["loss"], losses[5], rtol=1e-6)
    assert abs(losses[6] / losses[5] - 1) > 1e-4


def test_fixed_vae_changes_the_prior_and_nothing_else():
    stage, config = make_stage("joint", "objective.train_vae=False")
    assert {stage.trainable(n) for n in range(12)} == {("dit",)}
    before, after, means = run_steps(stage, config, 3)
    assert after.step == 3
    assert_same_bits(after.params["vae"], before.params["vae"])
    assert_same_bits(after.opt_state["vae"], before.opt_state["vae"])
    assert_same_bits(after.frozen, before.frozen)
    assert differ(after.params["dit"], before.params["dit"])
    assert np.isfinite(means["loss_dit"])
    assert not {"loss", "gradient_norm_vae"} & means.keys()  # a column means one thing at every step


@pytest.mark.parametrize("case", ["joint"], indirect=True)
def test_a_step_with_a_frozen_vae_has_the_flow_loss_of_a_joint_one(case):
    stage, _, state, examples = case
    counts = stage.counts(examples)
    losses = [
        jax.jit(lambda trainable=trainable: loss_and_means(
            stage, state.params, state.frozen, examples, counts, trainable
        )[1]["flow"])()
        for trainable in (("vae", "dit"), ("dit",))
    ]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_bfloat16_compute_is_near_float32(case, gradients):
    stage, config, state, examples = case
    rounded, _ = make_stage(config.stage, "compute_dtype=bfloat16")
    run = jax.jit(functools.partial(batch_gradients, rounded), static_argnums=(2, 3))
    found, means = run(state, examples, stage.groups, 1)
    expected, exact_means = gradients[1]
    assert means["loss"] != exact_means["loss"]
    np.testing.assert_allclose(means["loss"], exact_means["loss"], rtol=0.02)
    assert_close(found, expected, 0.03)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("name", "overrides", "variation", "start"),
    [
        ("vae", ["objective.beta=0"], False, "fresh"),
        ("joint", ["objective.beta=0", "objective.lambda_ref=0"], False, "fresh"),
        ("joint", ["objective.beta=0"], False, "from stage 1"),
        ("vae", ["objective.mask_every=0", "objective.fixed_log_snr=1.5"], True, "fresh"),
    ],
    ids=["stage 1 without variance", "stage 2 without variance, from scratch", "and from stage 1", "fixed logSNR"],
)
def test_variants_take_steps_from_their_own_initialisation(name, overrides, variation, start):
    begun = start == "from stage 1"
    stage, config = make_stage(name, *overrides, *(["init_from=somewhere"] if begun else []), use_variation=variation)
    params = jax.jit(stage.init)(jax.random.key(0))
    loaded = {"vae": jax.jit(stage.init)(jax.random.key(1))["vae"]} if begun else None
    params, frozen = stage.begin(params, loaded)
    before, after, means = run_steps(stage, config, 2, params, start=3, frozen=frozen)  # at the peak learning rate
    assert all(np.isfinite(value).all() for value in means.values())
    assert differ(after.params["vae"]["encoder"]["head"], before.params["vae"]["encoder"]["head"])
    assert ("variance" in means) == variation
    assert ("mask" in means) == bool(config.objective.mask_every)
    assert ("kl_reference" in means) == begun
    if begun:  # after one update the encoder is elsewhere than its reference, by a squared distance that is not 0
        assert means["kl_reference"] > 0
    if name == "joint":
        assert differ(after.params["dit"]["head"], before.params["dit"]["head"])
    if config.objective.fixed_log_snr:
        assert stage.summarise(jax.device_get(means))["log_snr"] == pytest.approx(1.5, abs=1e-3)
