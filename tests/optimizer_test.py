"""The optimizer against optax.adamw, settings by path, and the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_runs
from ml_collections import ConfigDict

from colajax.errors import UserError
from colajax.train.optimizer import by_path, learning_rate_schedule, make_optimizer

TOTAL = 8


def config(**changes):
    optimizer = ConfigDict({
        "peak": 3e-2, "init_value": 1e-6, "end_value": 1e-3, "warmup_steps": 3, "b1": 0.9, "b2": 0.95, "eps": 1e-8,
        "clip": 1.0, "weight_decay": ((".*/kernel", 0.1), (".*", 0.0)), "lr_ratio": ((".*", 1.0),),
        "decay_steps": None, "rewarm_from": 0,
    })  # fmt: skip
    optimizer.update(changes)
    return optimizer


def random_tree(seed, scale):
    rng = np.random.default_rng(seed)
    shapes = {"head": {"kernel": (4, 3), "bias": (3,)}, "norm": {"scale": (4,)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape) * scale, jnp.float32), shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )  # fmt: skip


PARAMS = {"vae": random_tree(0, 1.0), "dit": random_tree(1, 1.0)}


def gradients(step):
    """Some within the clip and some beyond; the VAE's are much larger."""
    return {"vae": random_tree(10 + step, 100.0), "dit": random_tree(20 + step, (0.05, 2.0)[step % 2])}


def run(optimizer, steps, groups=("vae", "dit")):
    update = jax.jit(optimizer.update)
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(steps):
        params, state, reports = update({g: gradients(step)[g] for g in groups}, state, params, step)
    return params, state, reports


def run_optax(group, steps, **changes):
    c = config(**changes)
    schedule = optax.warmup_cosine_decay_schedule(c.init_value, c.peak, c.warmup_steps, TOTAL, c.end_value)
    decayed = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", PARAMS[group])
    adamw = optax.adamw(schedule, c.b1, c.b2, c.eps, weight_decay=0.1, mask=decayed)
    transform = optax.chain(optax.clip_by_global_norm(c.clip), adamw)
    params, state = PARAMS[group], transform.init(PARAMS[group])
    for step in range(steps):
        updates, state = transform.update(gradients(step)[group], state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(found, expected, start, rtol=1e-4):
    """How far each parameter went, so that a small step is held as tightly as a large one."""

    def check(a, b, s):
        np.testing.assert_allclose(a - s, b - s, rtol=rtol, atol=1e-6)
        assert np.any(np.asarray(b) != np.asarray(s))

    jax.tree.map(check, found, expected, start)


def test_each_group_is_optax_adamw_with_a_clip_of_its_own():
    params, _, reports = run(make_optimizer(config(), PARAMS, TOTAL), 6)
    for group in params:
        assert_close(params[group], run_optax(group, 6), PARAMS[group])
        norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradients(5)[group])))
        assert reports[f"gradient_norm_{group}"] == pytest.approx(norm, rel=1e-5)  # before the clip


def test_clip_does_something_to_these_gradients():
    params, _, _ = run(make_optimizer(config(clip=1e9), PARAMS, TOTAL), 6)
    with pytest.raises(AssertionError):
        assert_close(params["dit"], run_optax("dit", 6), PARAMS["dit"], rtol=1e-2)


def test_a_group_without_gradients_stays_as_it_is():
    params, state, _ = run(make_optimizer(config(), PARAMS, TOTAL), 2, groups=("dit",))
    fresh = make_optimizer(config(), PARAMS, TOTAL).init(PARAMS)
    for found, expected in ((params["vae"], PARAMS["vae"]), (state["vae"], fresh["vae"])):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert_close(params["dit"], run_optax("dit", 2), PARAMS["dit"])


def test_learning_rate_ratios_scale_or_freeze_what_they_name():
    rows = (("vae/.*/kernel", 0.0), ("vae/.*", 0.01), (".*", 1.0))
    plain, _, _ = run(make_optimizer(config(init_value=1e-2), PARAMS, TOTAL), 1)
    scaled, _, _ = run(make_optimizer(config(init_value=1e-2, lr_ratio=rows), PARAMS, TOTAL), 1)
    np.testing.assert_array_equal(scaled["vae"]["head"]["kernel"], PARAMS["vae"]["head"]["kernel"])
    for name in (("head", "bias"), ("norm", "scale")):
        start, far, near = (tree["vae"][name[0]][name[1]] for tree in (PARAMS, plain, scaled))
        np.testing.assert_allclose(near - start, 0.01 * (far - start), rtol=1e-2)
    jax.tree.map(np.testing.assert_array_equal, scaled["dit"], plain["dit"])


def test_by_path_takes_the_first_row_that_matches_the_whole_path():
    tree = {"vae": {"encoder": {"kernel": 0, "bias": 0}, "kernel": 0, "scale": 0}}
    found = by_path((("vae/encoder/bias", 1), ("vae/kernel", 2), (".*/kernel", 3), (".*", 4)), tree, "rows")
    assert found == {"vae": {"encoder": {"kernel": 3, "bias": 1}, "kernel": 2, "scale": 4}}


@pytest.mark.parametrize("key", ["lr_ratio", "weight_decay"])
def test_rows_that_miss_are_errors_that_name_it(key):
    for rows, name in (
        ((("vae/hed/.*", 0.1), (".*", 1.0)), "'vae/hed/.*'"),
        ((("vae/.*", 0.1),), "dit/head/bias"),
        ((("head", 0.1), (".*", 1.0)), "'head'"),  # a part of a path is no match
        (((".*", "0.1"),), "'0.1'"),
        (((".*",),), "('.*',)"),
    ):
        with pytest.raises(UserError) as error:
            make_optimizer(config(**{key: rows}), PARAMS, TOTAL)
        assert f"config.optimizer.{key}" in str(error.value)
        assert name in str(error.value)


def test_schedule_of_the_paper():
    from_config = tiny_runs.load_config(f"{tiny_runs.ROOT}/configs/cola_vae.py", [])
    rate = learning_rate_schedule(from_config.optimizer, from_config.total_steps)
    assert float(rate(0)) == pytest.approx(1e-6, rel=1e-4)
    assert float(rate(2500)) == pytest.approx((1e-6 + 1.5e-4) / 2, rel=1e-4)
    assert float(rate(5000)) == pytest.approx(1.5e-4)
    halfway = 5000 + (1_000_000 - 5000) // 2
    assert float(rate(halfway)) == pytest.approx((1.5e-4 + 1e-5) / 2, rel=1e-3)
    assert float(rate(1_000_000)) == pytest.approx(1e-5)


@pytest.mark.parametrize("warmup", [0, 8, 9, -1])
def test_warm_up_must_fit_in_the_run(warmup):
    with pytest.raises(UserError, match=f"warmup_steps is {warmup}: expected 1 to total_steps - 1 \\(7\\)"):
        learning_rate_schedule(config(warmup_steps=warmup), TOTAL)


def test_fresh_moments_at_a_later_step_warm_up_again():
    c = config()
    rate, again = learning_rate_schedule(c, 100), learning_rate_schedule(config(rewarm_from=50), 100)
    assert float(again(50)) == pytest.approx(c.init_value)
    assert float(again(51)) == pytest.approx(c.init_value + (float(rate(51)) - c.init_value) / 3)
    assert [float(again(step)) for step in (53, 60, 99)] == pytest.approx([float(rate(step)) for step in (53, 60, 99)])
