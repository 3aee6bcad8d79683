"""The losses against one sample at a time, accumulation, what carries gradients, and which groups a step changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tiny_runs

from colajax.hf import layout
from colajax.models.text_vae import normalise
from colajax.stages.joint import JointStage
from colajax.stages.vae import VAEStage
from colajax.train.optimizer import make_optimizer
from colajax.train.state import TrainState
from colajax.train.step import batch_gradients, loss_and_means, make_evaluation, make_train_step

PAD, ROWS, VOCABULARY = 0, 8, 40
STAGES = {"vae": VAEStage, "joint": JointStage}
SHAPE = (
    "vae.dim=16", "vae.ffn_dim=24", f"vae.vocab_size={VOCABULARY}", "vae.patch_size=2", "vae.block_size=4",
    "objective.mask_every=2", "objective.mask_rate=0.4", "objective.beta=0.03", "objective.lambda_mask=0.4",
)  # fmt: skip
JOINT_SHAPE = (
    "dit.block_size=4", "objective.prompt_probability=0.5", "objective.lambda_vae=0.7", "objective.lambda_fm=1.3",
    "objective.lambda_ref=0.2",
)  # fmt: skip


def make_stage(name, *overrides):
    """The stage and its configuration; every weight of the loss is a number of its own."""
    config = tiny_runs.tiny_config(name, *SHAPE, *(JOINT_SHAPE if name == "joint" else ()), *overrides)
    with config.unlocked():  # nothing of the loss may rest on these two being 1 and 0
        config.vae.scaling_factor, config.vae.shifting_factor = 1.25, 0.1
    return STAGES[name](config, PAD), config


def make_tokens(seed=0):
    """Rows with padding, from none to nearly all of the row, not always in whole patches."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCABULARY, (ROWS, tiny_runs.SEQUENCE_LENGTH)).astype(np.int32)
    for row, used in enumerate((32, 9, 32, 17, 3, 28, 32, 24)):
        tokens[row, used:] = PAD
    return tokens


def make_params(stage, seed=0):
    kinds = {"vae": layout.VAE, "dit": layout.DIT}
    return {
        group: jax.tree.map(jnp.asarray, tiny_models.random_params(kinds[group], config, seed))
        for group, config in stage.model_configs.items()
    }


def make_frozen(stage):
    """Another encoder than the one that is trained, as it is after some steps."""
    return {"reference": make_params(stage, seed=9)["vae"]["encoder"]} if isinstance(stage, JointStage) else {}


@pytest.fixture(scope="module", params=["vae", "joint"])
def case(request):
    """(stage, configuration, state, examples)"""
    stage, config = make_stage(request.param)
    params = make_params(stage)
    state = TrainState(jnp.int32(0), params, {}, make_frozen(stage))
    return stage, config, state, stage.examples(jnp.asarray(make_tokens()), 5, seed=1)


@pytest.fixture(scope="module")
def gradients(case):
    """{parts: (gradients by group, means)}"""
    stage, _, state, examples = case
    run = jax.jit(functools.partial(batch_gradients, stage), static_argnums=(2, 3))
    return {parts: run(state, examples, stage.groups, parts) for parts in (1, 2, 4)}


def gaussian_kl(mean, logvar, other_mean, other_logvar):
    ratio = jnp.exp(logvar) / jnp.exp(other_logvar)
    return ((ratio - jnp.log(ratio) + (mean - other_mean) ** 2 / jnp.exp(other_logvar) - 1) / 2).sum(-1)


def slow_loss(stage, config, params, frozen, examples, clean_encoder=None):
    """The loss as the description of the model has it, one sample at a time: every term a mean over the batch's tokens,
    masked tokens, latents or predicted latents. clean_encoder: of the copy that conditions the prior."""
    o, joint = config.objective, isinstance(stage, JointStage)
    vae, patch = stage.vae.model.bind(params["vae"]), stage.vae.config.patch_size
    sums, counts = {}, {}

    def add(name, values, where):
        sums[name] = sums.get(name, 0.0) + (values * where).sum()
        counts[name] = counts.get(name, 0) + where.sum()

    def nll(z, tokens):
        log_p = jax.nn.log_softmax(vae.decoder(normalise(stage.vae.config, z))[0])
        return -jnp.stack([log_p[0, t, token] for t, token in enumerate(tokens)])

    for i in range(ROWS):
        sample = {name: np.asarray(value[i]) for name, value in examples.items()}
        tokens, text = sample["tokens"], sample["tokens"] != PAD
        latent = text.reshape(-1, patch).any(-1)
        mean, logvar = vae.encoder(tokens[None])
        z0 = mean + jnp.exp(logvar / 2) * sample["posterior_noise"]
        add("reconstruction", nll(z0, tokens), text)
        if i % o.mask_every == 0:
            masked = sample["masked"] & text
            seen = np.where(masked, VOCABULARY, tokens)
            seen_mean, seen_logvar = vae.encoder(seen[None])
            add("mask", nll(seen_mean + jnp.exp(seen_logvar / 2) * sample["masked_posterior_noise"], tokens), masked)
        if not joint:
            add("kl", gaussian_kl(mean, logvar, 0.0, jnp.zeros_like(logvar))[0], latent)
            continue
        entropy = (jnp.log(2 * jnp.pi * jnp.e * jnp.exp(logvar)) / 2).sum(-1)
        add("negative_entropy", -entropy[0], latent)
        reference = stage.vae.encoder.bind(frozen["reference"])(tokens[None])
        add("kl_reference", gaussian_kl(mean, logvar, *reference)[0], latent)

        clean = z0
        if clean_encoder is not None:
            clean_mean, clean_logvar = stage.vae.encoder.bind(clean_encoder)(tokens[None])
            clean = clean_mean + jnp.exp(clean_logvar / 2) * sample["posterior_noise"]
        z, clean = normalise(stage.vae.config, z0), normalise(stage.vae.config, clean)
        t, z1, given = sample["time"], sample["noise"], sample["given"]
        z_t = jnp.where(given[:, None], clean, (1 - t) * z + t * z1)
        dit = stage.model.bind(params["dit"])
        noisy = np.stack([np.zeros_like(given), ~given])
        velocity = dit(jnp.stack([clean, z_t], 1), t[None], noisy[None], np.arange(len(given)))[0][0, 1]
        add("flow", ((velocity - (z1 - z[0])) ** 2).mean(-1), latent & ~given)

    means = {name: sums[name] / counts[name] for name in sums}
    if not joint:
        return means["reconstruction"] + o.beta * means["kl"] + o.lambda_mask * means["mask"]
    stage_one = means["reconstruction"] + o.beta * means["negative_entropy"] + o.lambda_mask * means["mask"]
    return o.lambda_vae * stage_one + o.lambda_fm * means["flow"] + o.lambda_ref * means["kl_reference"]


def assert_close(found, expected, tolerance):
    """Every group of gradients to within `tolerance` of its norm."""
    assert found.keys() == expected.keys()
    for group in expected:
        difference = jax.tree.map(jnp.subtract, found[group], expected[group])
        norms = [float(jnp.sqrt(sum((a**2).sum() for a in jax.tree.leaves(t)))) for t in (difference, expected[group])]
        assert norms[0] <= tolerance * norms[1], group
        assert norms[1] > 0.01, group


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
    for name in halves[0].keys() - {"noisy_by_time"}:
        assert halves[0][name] != halves[1][name], name


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_neither_loss_nor_gradients(gradients, parts):
    (found, means), (expected, expected_means) = gradients[parts], gradients[1]
    np.testing.assert_allclose(means["loss"], expected_means["loss"], rtol=1e-6)
    for name in expected_means:
        np.testing.assert_allclose(means[name], expected_means[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert_close(found, expected, 1e-5)


def test_loss_and_gradients_are_the_description_s(case, gradients):
    stage, config, state, examples = case
    clean = jax.tree.map(jnp.array, state.params["vae"]["encoder"])  # apart, so that no gradient goes through it

    @jax.jit
    def slow(params):
        return slow_loss(stage, config, params, state.frozen, examples, clean)

    expected, expected_gradients = jax.value_and_grad(slow)(state.params)
    found, means = gradients[1]
    np.testing.assert_allclose(means["loss"], expected, rtol=1e-5)
    assert_close(found, expected_gradients, 1e-4)


def test_flow_loss_shapes_the_encoder_through_everything_but_the_clean_copy():
    stage, config = make_stage("joint", "objective.lambda_vae=0", "objective.lambda_ref=0")
    params, frozen = make_params(stage), make_frozen(stage)
    examples = stage.examples(jnp.asarray(make_tokens()), 5, seed=1)
    encoder, counts = params["vae"]["encoder"], stage.counts(examples)

    def with_encoder(encoder):
        return {**params, "vae": {**params["vae"], "encoder": encoder}}

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def slow(encoder, clean_encoder):
        return slow_loss(stage, config, with_encoder(encoder), frozen, examples, clean_encoder)

    @jax.jit
    @jax.grad
    def fast(encoder):
        return loss_and_means(stage, with_encoder(encoder), frozen, examples, counts, stage.groups)[0]

    through_path_and_target, through_clean = slow(encoder, encoder)
    assert_close({"encoder": fast(encoder)}, {"encoder": through_path_and_target}, 1e-4)
    left_out = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(through_clean))
    assert left_out > 0.01  # what the stop keeps out is not zero of itself


def test_the_reference_gets_no_gradient_and_is_not_the_trained_encoder(case):
    stage, _, state, examples = case
    if not state.frozen:
        assert "kl_reference" not in stage.weights
        return
    counts = stage.counts(examples)
    _, means = loss_and_means(stage, state.params, state.frozen, examples, counts, stage.groups)
    same = {"reference": state.params["vae"]["encoder"]}
    _, at_itself = loss_and_means(stage, state.params, same, examples, counts, stage.groups)
    assert at_itself["kl_reference"] == 0 < means["kl_reference"]


def run_steps(stage, config, count, params=None, start=0, frozen=None):
    """(state before, state after `count` steps, means of the last)."""
    params = make_params(stage) if params is None else params
    optimizer = make_optimizer(config.optimizer, params, config.total_steps)
    frozen = make_frozen(stage) if frozen is None else frozen
    state = TrainState(jnp.int32(start), params, optimizer.init(params), frozen)
    before = jax.tree.map(np.asarray, state)
    state = jax.tree.map(jnp.copy, state)
    step = make_train_step(stage, optimizer, seed=config.seed, parts=config.accumulation_steps)
    for n in range(start, start + count):
        state, means = step(state, jnp.asarray(make_tokens(n)), stage.trainable(n))
    return before, jax.tree.map(np.asarray, state), means


def test_fixed_vae_changes_the_prior_and_nothing_else():
    stage, config = make_stage("joint", "objective.train_vae=False")
    assert {stage.trainable(n) for n in range(12)} == {("dit",)}
    before, after, means = run_steps(stage, config, 3)
    assert after.step == 3
    assert_same_bits(after.params["vae"], before.params["vae"])
    assert_same_bits(after.opt_state["vae"], before.opt_state["vae"])
    assert_same_bits(after.frozen, before.frozen)
    assert differ(after.params["dit"], before.params["dit"])
    assert np.isfinite(means["loss"])
    assert "gradient_norm_vae" not in means


def test_a_step_with_a_frozen_vae_has_the_flow_loss_of_a_joint_one(case):
    stage, _, state, examples = case
    if not isinstance(stage, JointStage):
        return
    counts = stage.counts(examples)
    losses = [
        jax.jit(lambda trainable=trainable: loss_and_means(
            stage, state.params, state.frozen, examples, counts, trainable
        )[1]["flow"])()
        for trainable in (("vae", "dit"), ("dit",))
    ]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_interval_trains_the_vae_in_the_first_steps_of_each():
    stage, _ = make_stage("joint", "objective.interval=5", "objective.interval_joint=2")
    joint = [stage.trainable(n) == ("vae", "dit") for n in range(11)]
    assert joint == [True, True, False, False, False] * 2 + [True]
    assert {stage.trainable(n) for n in range(11)} == {("vae", "dit"), ("dit",)}


@pytest.mark.parametrize("name", ["vae", "joint"])
def test_bfloat16_compute_is_near_float32_and_parameters_stay_float32(name):
    losses = {}
    for dtype in ("float32", "bfloat16"):
        stage, config = make_stage(name, f"compute_dtype={dtype}")
        _, after, means = run_steps(stage, config, 1)
        losses[dtype] = float(means["loss"])
        assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {np.dtype(np.float32)}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vae", ["vae.use_variation=False", "objective.beta=0"]),
        ("joint", ["vae.use_variation=False", "objective.beta=0", "objective.lambda_ref=0"]),
        ("joint", ["objective.lambda_ref=0"]),
        ("vae", ["objective.mask_every=0"]),
        ("vae", ["objective.fixed_log_snr=1.5"]),
    ],
    ids=["stage 1 without variance", "stage 2 without variance", "all from scratch", "without L_mask", "fixed logSNR"],
)
def test_variants_take_steps_from_their_own_initialisation(name, overrides):
    stage, config = make_stage(name, *[key for key in overrides if not key.startswith("vae.use")])
    if overrides[0].startswith("vae.use"):
        with config.unlocked():
            config.vae.use_variation = False
        stage = STAGES[name](config, PAD)
    params = jax.jit(stage.init)(jax.random.key(0))
    before, after, means = run_steps(stage, config, 2, params, start=3, frozen={})  # at the peak learning rate
    assert all(np.isfinite(value).all() for value in means.values())
    for group in stage.groups:
        # The weights behind a modulation that starts at zero get a gradient once it has left zero.
        assert differ(after.params[group]["head" if group == "dit" else "encoder"]["head" if group == "vae" else "kernel"],
                      before.params[group]["head" if group == "dit" else "encoder"]["head" if group == "vae" else "kernel"])
    assert ("variance" in means) == config.vae.get("use_variation", True)
    assert ("mask" in means) == bool(config.objective.mask_every)
    if "objective.fixed_log_snr=1.5" in overrides:
        assert stage.summarise(jax.device_get(means))["log_snr"] == pytest.approx(1.5, abs=1e-3)


@pytest.mark.parametrize("name", ["vae", "joint"])
def test_what_a_sample_draws_depends_on_seed_step_and_its_index_alone(name):
    stage, _ = make_stage(name)
    draw = jax.jit(stage.examples, static_argnums=2)
    tokens, others = make_tokens(), make_tokens(1)
    whole, part, beside_others = draw(tokens, 3, 1), draw(tokens[:4], 3, 1), draw(np.r_[tokens[:4], others[4:]], 3, 1)
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][:4], err_msg=name)
        np.testing.assert_array_equal(beside_others[name][:4], whole[name][:4], err_msg=name)

    random = [name for name in whole if name != "tokens"]
    for other in (draw(tokens, 4, 1), draw(tokens, 3, 2)):
        for name in random:
            assert np.any(np.asarray(other[name]) != np.asarray(whole[name])), name
    for name in random:
        rows = np.asarray(whole[name]).reshape(ROWS, -1)[[0, 2, 6]]  # without padding
        assert len(np.unique(rows, axis=0)) == 3, name
    noises = [np.asarray(whole[name]) for name in random if name.endswith("noise")]
    assert all(np.any(a != b) for i, a in enumerate(noises) for b in noises[:i])


def test_masked_tokens_are_text_at_the_rate():
    stage, _ = make_stage("vae", "objective.mask_rate=0.15")
    tokens = np.full((2000, tiny_runs.SEQUENCE_LENGTH), 1, np.int32)
    tokens[:, 20:] = PAD
    masked = np.asarray(stage.examples(tokens, 0, seed=0)["masked"])
    assert not masked[:, 20:].any()
    assert masked[:, :20].mean() == pytest.approx(0.15, abs=4 * np.sqrt(0.15 * 0.85 / 40_000))


def test_evaluation_is_the_loss_over_all_rows_and_reads_the_swapped_prefix():
    stage, _ = make_stage("joint")
    state = TrainState(jnp.int32(0), make_params(stage), {}, make_frozen(stage))
    batches = [make_tokens(1), make_tokens(2)]
    means = make_evaluation(stage, seed=3)(state, batches)

    examples = [stage.examples(jnp.asarray(rows), index, 3) for index, rows in enumerate(batches)]
    joined = jax.tree.map(lambda *a: jnp.concatenate(a), *examples)
    loss, by_hand = loss_and_means(
        stage, state.params, state.frozen, joined, stage.counts(joined), stage.groups, diagnostics=False
    )
    np.testing.assert_allclose(means["loss"], loss, rtol=1e-5)
    for name in by_hand:
        np.testing.assert_allclose(means[name], by_hand[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert abs(means["flow_swapped"] - means["flow"]) > 1e-4

    report = stage.summarise(means)
    assert report["context_gain"] != 0
    assert report["skill"] == pytest.approx(1 - by_hand["flow"] / by_hand["flow_floor"], rel=1e-4)


def report_of(stage, mean, variance, flow_loss):
    """The report of an evaluation that found these posterior means (N, D), this variance, and this flow loss."""
    count = len(mean)
    z = mean + np.random.default_rng(1).standard_normal(mean.shape) * np.sqrt(variance)
    return stage.summarise({
        "loss": np.float32(1.0), "flow": np.float32(flow_loss), "flow_floor": np.float32(1.5), "flow_swapped": np.float32(1.2),
        "flow_by_time": np.arange(10) / 10, "mean": mean.mean(0), "mean_square": (mean**2).mean(0),
        "variance": np.full(mean.shape[1], variance), "z": z.mean(0), "z_outer": z.T @ z / count,
    })  # fmt: skip


def test_collapse_is_loud_and_health_is_quiet():
    stage, _ = make_stage("joint")
    rng = np.random.default_rng(0)
    healthy = rng.standard_normal((5000, 4))
    constant = np.array([1.0, -1.0, 1.0, -1.0])
    collapsed = constant + 0.01 * rng.standard_normal((5000, 4))

    report = report_of(stage, healthy, 0.05, 0.9)
    assert stage.warnings(report) == []
    assert report["mean_variance"] == pytest.approx(1, abs=0.05)
    assert abs(report["gaussian_skill"]) < 0.1
    assert report["skill"] == pytest.approx(1 - 0.9 / 1.5)
    assert report["context_gain"] == pytest.approx((1.2 - 0.9) / 1.5)
    assert report["flow_time_0.3"] == pytest.approx(0.3)

    report = report_of(stage, collapsed, 1e-4, 0.03)
    assert report["skill"] > 0.95  # looks like success
    assert report["mean_variance"] < 0.01
    assert report["gaussian_skill"] > 0.9
    (warning,) = stage.warnings(report)
    assert "collapsing" in warning
    assert "lambda_ref" in warning


def test_log_snr_on_numbers_worked_out_by_hand():
    stage, _ = make_stage("vae")
    # Means (1, 3) and (3, 5) of two latents: mean square (5, 17), mean (2, 4), so variance across latents (1, 1).
    means = {"mean": np.array([2.0, 4.0]), "mean_square": np.array([5.0, 17.0]), "variance": np.array([0.5, 1.5])}
    report = stage.summarise({**means, "loss": np.float32(2.0)})
    assert report["loss"] == 2.0
    assert report["mean_variance"] == pytest.approx(1.0)
    assert report["log_snr"] == pytest.approx(np.log(11.0))
    assert report["log_snr_centred"] == pytest.approx(0.0)
