"""The ledger: a stage's count of its matrix products against those of the program that JAX lowers, and EFLOPs."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
import tiny_runs
from command_lines import assert_refused, run
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval
from tiny_runs import ROOT, tiny_config

from colajax.keys import training_draw
from colajax.stages import STAGES
from colajax.stages.base import steps_to
from colajax.stages.flops import Keys, attention_flops
from colajax.train.optimizer import optimizer_of
from colajax.train.state import state_shapes
from colajax.train.step import batch_gradients

# Widths at which every part is a large share of the whole, and each a number of its own.
SHAPES = {
    "vae": (
        "batch_size=6", "sequence_length=48", "objective.mask_every=3", "vae.dim=24", "vae.num_heads=2",
        "vae.ffn_dim=40", "vae.vocab_size=60", "vae.latent_dim=20", "vae.encoder_num_blocks=3",
        "vae.decoder_num_blocks=2", "vae.block_size=4",
    ),
    "joint": (
        "dit.txt_dim=20", "dit.emb_dim=240", "dit.heads=3", "dit.head_dim=8", "dit.rope_dim=4", "dit.num_layers=2",
        "dit.expand_ratio=3", "dit.txt_in_channels=20", "dit.txt_out_channels=20", "dit.block_size=4",
    ),
    "llama": (
        "batch_size=6", "sequence_length=48", "llama.hidden_size=24", "llama.num_attention_heads=2",
        "llama.intermediate_size=40", "llama.vocab_size=60", "llama.num_hidden_layers=3",
    ),
}  # fmt: skip
CASES = {
    "vae": ("vae", ()),
    "vae without masked views": ("vae", ("objective.mask_every=0",)),
    "vae of patch 2": ("vae", ("vae.patch_size=2", "objective.mask_every=2")),
    "vae of one block a row": ("vae", ("vae.block_size=48",)),
    "vae with gelu": ("vae", ("vae.act=gelu",)),
    "joint": ("joint", ("init_from=x",)),
    "joint from scratch": ("joint", ("objective.lambda_ref=0.0",)),
    "joint without masked views": ("joint", ("init_from=x", "objective.mask_every=0")),
    "joint of patch 2": ("joint", ("init_from=x", "vae.patch_size=2")),
    "fixed VAE": ("joint", ("init_from=x", "objective.train_vae=False")),
    "autoregressive": ("ar", ()),
    "masked diffusion": ("llada", ()),
    "interval, prior alone": ("joint", ("init_from=x", "objective.interval=2", "objective.interval_joint=1")),
}


def stage_with(name, overrides=()):
    shapes = {"vae": SHAPES["vae"], "joint": SHAPES["vae"] + SHAPES["joint"]}.get(name, SHAPES["llama"])
    config = tiny_config(name, *shapes, *overrides)
    return STAGES[name](config, tiny_runs.PAD, tiny_runs.END), config


def products(jaxpr) -> int:
    """Operations of the matrix products in a jaxpr, without those whose results nothing uses: jit drops them too."""
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        assert equation.primitive.name not in ("while", "cond"), "a number of times that is not written there"
        total += times * sum(products(inner) for inner in jaxprs_in_params(equation.params))
    return total


def program(stage, config, trainable):
    """The jaxpr of the gradients of an update."""
    state = state_shapes(stage, optimizer_of(config, stage))
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.sequence_length), jnp.int32)

    def update(state, tokens):
        examples = stage.examples(tokens, training_draw(0, 0, jnp.arange(len(tokens))))
        return batch_gradients(stage, state, examples, trainable, 1)

    return jax.make_jaxpr(update)(state, tokens).jaxpr


@pytest.mark.parametrize("case", CASES)
def test_the_count_is_that_of_the_program(case):
    stage, config = stage_with(*CASES[case])
    trainable = stage.trainable(1)  # of the interval, the step with the prior alone
    counted = stage.step_flops(config.batch_size, trainable, Keys.COMPUTED)
    found = products(program(stage, config, trainable))
    assert sum(counted.values()) == pytest.approx(found, rel=0.004)
    least = min(counted.values()) / found
    assert least > 0.012, f"a part of {least:.1%} could be left out"


def test_what_masks_allow_is_counted_for_utilisation():
    """Every pair of a query and a key that it sees, of one row in one copy and in two."""
    length, size, width = 24, 4, 10
    block = [place // size for place in range(length)]
    own_copy = sum(block[key] <= block[query] for query in range(length) for key in range(length))
    noisy = sum(block[key] <= block[query] for query in range(length) for key in range(length))  # clean or of its own
    assert attention_flops(width, length, length, size, Keys.ALLOWED) == 4 * width * own_copy
    assert attention_flops(width, 2 * length, length, size, Keys.ALLOWED) == 4 * width * (own_copy + noisy)
    stage, config = stage_with("joint", ("init_from=x",))
    allowed, computed = (
        sum(stage.step_flops(config.batch_size, stage.groups, keys).values()) for keys in (Keys.ALLOWED, Keys.COMPUTED)
    )
    assert stage.flops(config.batch_size, stage.groups) == allowed < 0.95 * computed
    ar, llada = (stage_with(name)[0].step_flops(1, ("llama",), Keys.ALLOWED)["layers"] for name in ("ar", "llada"))
    pairs = 48 * 48 - sum(key <= query for query in range(48) for key in range(48))  # behind the query
    assert llada - ar == 3 * 3 * 4 * 24 * pairs


@pytest.mark.parametrize("steps", [0, 1, 4, 5, 23])
def test_the_ledger_adds_up_step_by_step(steps):
    stage, config = stage_with("joint", ("init_from=x", "objective.interval=5", "objective.interval_joint=2"))
    by_hand = sum(
        sum(stage.step_flops(config.batch_size, stage.trainable(step), Keys.COMPUTED).values()) for step in range(steps)
    )
    ledger = stage.ledger(config.batch_size, steps)
    assert ledger["exact_eflops"] == pytest.approx(by_hand / 1e18, abs=0)
    assert ledger["tokens"] == steps * 6 * 48
    assert ledger["eflops"] == pytest.approx(6 * stage.compute_params() * ledger["tokens"] / 1e18)


def test_a_multiple_of_a_step_s_eflops_is_so_many_steps():
    for per_step in (0.1, 1 / 3, 7.786e-3, 1.9e-11):
        for steps in (1, 3, 7, 10_000, 999_983):
            assert steps_to(steps * per_step, per_step) == steps
            assert steps_to((steps + 0.001) * per_step, per_step) == steps + 1


# ---- tools/flops.py --------------------------------------------------------------------------------------------------
JOINT = str(ROOT / "configs/cola_joint.py")


def test_ten_thousand_steps_of_the_paper():
    status, output, _ = run("flops", ["--config", JOINT, "--steps", "10000"])
    assert status == 0
    rows = dict(re.split(r"  +", line.strip())[:2] for line in output.splitlines() if line.startswith("  "))
    assert rows["EFLOPs (6 N tokens)"] == "77.86"
    assert rows["tokens"] == "7,208,960,000"
    exact = float(rows["EFLOPs, exact"])
    assert 1.5 * 77.86 < exact < 2 * 77.86
    names = ("prior", "encoder", "decoder", "unembedding", "masked views", "modulation", "reference encoder")
    assert sum(float(rows[name]) for name in names) == pytest.approx(exact, rel=1e-3)
    assert run("flops", ["--config", JOINT, "--eflops", "77.85"]).output == output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps 0: expected more than 0"),
        (["--eflops", "nan"], "--eflops nan"),
        (["--eflops", "1e30"], "--eflops"),
        (["--steps", "1", "--eflops", "1"], "not allowed with"),
    ],
)
def test_a_target_that_is_none(arguments, said):
    status, _, errors = run("flops", ["--config", JOINT, *arguments])
    assert status == 2
    assert_refused(errors)
    assert said in errors
