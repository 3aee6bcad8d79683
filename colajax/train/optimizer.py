"""AdamW over named parameter groups, with per-path settings as (regular expression, value) rows."""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from colajax.errors import UserError


def by_path(rows, tree, what: str):
    """A tree of the values of the first row whose pattern matches the whole path ("vae/encoder/head/kernel").

    Raises UserError on a parameter that no row matches, a row that matches no parameter, and what is not such a row.
    """
    for row in rows:
        try:
            pattern, value = row
            re.compile(pattern)
            usable = math.isfinite(value)
        except (TypeError, ValueError, OverflowError, re.error):
            usable = False
        if not usable:
            raise UserError(f"{what}: {row!r}: expected rows of (regular expression, number)") from None
    unused = {pattern for pattern, _ in rows}

    def value_of(path, _):
        name = "/".join(str(part.key) for part in path)
        matching = [(pattern, value) for pattern, value in rows if re.fullmatch(pattern, name)]
        unused.difference_update(pattern for pattern, _ in matching)
        if not matching:
            raise UserError(f"{what}: no row matches parameter {name}; end the list with a row for '.*'")
        return matching[0][1]

    values = jax.tree_util.tree_map_with_path(value_of, tree)
    if unused:
        raise UserError(f"{what}: the pattern {sorted(unused)[0]!r} matches no parameter of this run")
    return values


def learning_rate_schedule(config, total_steps: int) -> optax.Schedule:
    """Linear warm-up from init_value to peak, then a cosine to end_value at decay_steps (total_steps where that is
    None), and end_value after it. Where fresh moments meet a later step, rewarm_from, the rate climbs again from
    init_value to what it is then, in as many steps."""
    name, end = ("total_steps", total_steps) if config.decay_steps is None else ("decay_steps", config.decay_steps)
    if not 0 < config.warmup_steps < end:
        raise UserError(f"config.optimizer.warmup_steps is {config.warmup_steps}: expected 1 to {name} - 1 ({end - 1})")
    whole = optax.warmup_cosine_decay_schedule(
        config.init_value, config.peak, config.warmup_steps, end, config.end_value
    )
    if not config.rewarm_from:
        return whole

    def warmed_up_again(step):
        share = jnp.clip((step - config.rewarm_from) / config.warmup_steps, 0, 1)
        return config.init_value + share * (whole(step) - config.init_value)

    return warmed_up_again


class Optimizer(NamedTuple):
    """`init(params)` and `update(grads, opt_state, params, step)` over {group: tree}; update takes the groups that are
    trained, leaves the others untouched, and returns (params, opt_state, reports)."""

    transforms: dict
    learning_rate: optax.Schedule
    lr_ratio: dict

    def init(self, params: dict) -> dict:
        return {group: self.transforms[group].init(tree) for group, tree in params.items()}

    def update(self, grads: dict, opt_state: dict, params: dict, step) -> tuple[dict, dict, dict]:
        rate = self.learning_rate(step)
        params, opt_state, reports = dict(params), dict(opt_state), {"learning_rate": rate}
        for group, grad in grads.items():
            updates, opt_state[group] = self.transforms[group].update(grad, opt_state[group], params[group])
            params[group] = jax.tree.map(
                lambda p, u, ratio: p - rate * ratio * u, params[group], updates, self.lr_ratio[group]
            )
            reports[f"gradient_norm_{group}"] = optax.tree.norm(grad)
        return params, opt_state, reports


def optimizer_of(config, stage) -> Optimizer:
    """The optimizer that a configuration gives to the parameters of its stage."""
    return make_optimizer(config.optimizer, stage.shapes(), config.total_steps)


def make_optimizer(config, shapes: dict, total_steps: int) -> Optimizer:
    """From config.optimizer and the shapes of {group: tree}. Each group is clipped by its own norm: the VAE's gradients
    (reconstruction, reference KL) are many times the prior's, and would shrink its updates."""
    for key, holds, expected in (
        ("peak", config.peak > 0, "more than 0"),
        ("init_value", config.init_value >= 0, "0 or more"),
        ("end_value", config.end_value >= 0, "0 or more"),
        ("b1", 0 <= config.b1 < 1, "0 to less than 1"),
        ("b2", 0 <= config.b2 < 1, "0 to less than 1"),
        ("eps", config.eps > 0, "more than 0"),
        ("clip", config.clip > 0, "more than 0, the largest norm of a gradient"),
    ):
        if not holds:
            raise UserError(f"config.optimizer.{key} is {config[key]!r}: expected {expected}")
    decay = by_path(config.weight_decay, shapes, "config.optimizer.weight_decay")
    transforms = {
        group: optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.scale_by_adam(config.b1, config.b2, config.eps),
            _decayed_weights(decay[group]),
        )
        for group in shapes
    }
    lr_ratio = by_path(config.lr_ratio, shapes, "config.optimizer.lr_ratio")
    return Optimizer(transforms, learning_rate_schedule(config, total_steps), lr_ratio)


def _decayed_weights(decay) -> optax.GradientTransformation:
    """Adds decay * parameter to the update, with a decay of its own for every parameter."""

    def update(updates, state, params):
        return jax.tree.map(lambda u, p, d: u + jnp.float32(d) * p, updates, params, decay), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
