"""What a stage draws for a batch, which groups it trains when, and what it makes of the means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import PAD, ROWS, SEQUENCE_LENGTH, make_stage, make_tokens, spec

from colajax.keys import training_draw
from colajax.train.alerts import alerts_of, raised_by
from colajax.train.config import load_config


@pytest.mark.parametrize("name", ["vae", "joint", "llada"])
def test_what_a_sample_draws_depends_on_seed_step_and_its_index_alone(name):
    stage, _ = make_stage(name)

    @functools.partial(jax.jit, static_argnums=2)
    def draw(tokens, step, seed):
        return stage.examples(tokens, training_draw(seed, step, jnp.arange(len(tokens))))

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
    tokens = np.full((2000, SEQUENCE_LENGTH), 1, np.int32)
    tokens[:, 20:] = PAD
    masked = np.asarray(stage.examples(tokens, training_draw(0, 0, jnp.arange(2000)))["masked"])
    assert not masked[:, 20:].any()
    assert masked[:, :20].mean() == pytest.approx(0.15, abs=4 * np.sqrt(0.15 * 0.85 / 40_000))


def test_interval_trains_the_vae_in_the_first_steps_of_each():
    stage, _ = make_stage("joint", "objective.interval=5", "objective.interval_joint=2")
    joint = [stage.trainable(n) == ("vae", "dit") for n in range(11)]
    assert joint == [True, True, False, False, False] * 2 + [True]
    assert {stage.trainable(n) for n in range(11)} == {("vae", "dit"), ("dit",)}


def report_of(stage, mean, variance, flow_loss):
    """The report of an evaluation that found these posterior means (N, D), this variance, and this flow loss."""
    count = len(mean)
    z = mean + np.random.default_rng(1).standard_normal(mean.shape) * np.sqrt(variance)
    return stage.summarise({
        "flow": np.float32(flow_loss), "flow_floor": np.float32(1.5), "flow_swapped": np.float32(1.2),
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
    alerts = alerts_of(load_config(spec("joint"), []).alerts)
    healthy_report = {"kl_reference": 0.1, "dead_channels": 0.0}
    assert raised_by(alerts, [report | healthy_report]) == {}
    assert report["mean_variance"] == pytest.approx(1, abs=0.05)
    assert abs(report["gaussian_skill"]) < 0.1
    assert report["skill"] == pytest.approx(1 - 0.9 / 1.5)
    assert report["context_gain"] == pytest.approx((1.2 - 0.9) / 1.5)
    assert report["flow_time_0.3"] == pytest.approx(0.3)

    report = report_of(stage, collapsed, 1e-4, 0.03)
    assert report["skill"] > 0.95  # looks like success
    assert report["mean_variance"] < 0.01
    assert report["gaussian_skill"] > 0.9
    assert report["dead_channels"] == 1
    raised = {alert.figure for alert in raised_by(alerts, [report])}
    assert raised == {"mean_variance", "gaussian_skill", "dead_channels"}


def test_log_snr_on_numbers_worked_out_by_hand():
    stage, _ = make_stage("vae")
    # Means (1, 3) and (3, 5) of two latents: mean square (5, 17), mean (2, 4), so variance across latents (1, 1).
    means = {"mean": np.array([2.0, 4.0]), "mean_square": np.array([5.0, 17.0]), "variance": np.array([0.5, 1.5])}
    report = stage.summarise({**means, "loss": np.float32(2.0)})
    assert report["loss"] == 2.0
    assert report["mean_variance"] == pytest.approx(1.0)
    assert report["log_snr"] == pytest.approx(np.log(11.0))
    assert report["log_snr_centred"] == pytest.approx(0.0)
