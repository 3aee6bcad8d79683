"""Gradients of bfloat16 compute against float32: every parameter of every network; sums that saturate in bfloat16.

COLAJAX_PAPER_WIDTHS=1: one and two layers of the paper's widths at 8,192 tokens too, which takes half an hour.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from flax import nnx
from tiny_runs import spec

from colajax.keys import training_draw
from colajax.models import layers
from colajax.models.dit import Embedding, Modulation, add_gated, modulate
from colajax.models.text_vae import Encoder
from colajax.stages import STAGES
from colajax.train.config import load_config
from colajax.train.state import TrainState
from colajax.train.step import batch_gradients, rounded_kernels

# The widths of the paper's models, with a vocabulary and a number of layers that fit here.
PAPER_VAE = ("vae.dim=1536", "vae.ffn_dim=6144", "vae.num_heads=12", "vae.vocab_size=2048", "vae.block_size=16")
PAPER_DIT = (
    "dit.txt_dim=2048", "dit.emb_dim=2048", "dit.heads=16", "dit.head_dim=128", "dit.rope_dim=96", "dit.block_size=16",
)  # fmt: skip


def of_layers(count: int) -> tuple:
    return (*PAPER_VAE, f"vae.encoder_num_blocks={count}", f"vae.decoder_num_blocks={count}", "remat=dots")


# (stage, rows, tokens of each, overrides, median). Roundings are each token's own and what tokens agree on adds up, so
# that with fewer tokens the share of the roundings is greater: at the paper's widths 8,192 would take minutes here.
CASES = {
    "stage 1, quickstart": ("vae", 128, 64, (), 0.01),
    "stage 2, quickstart": ("joint", 128, 64, (), 0.01),
    "masked diffusion, quickstart": ("llada", 128, 64, (), 0.01),
    "stage 1, the paper's widths, 1 layer": ("vae", 4, 128, of_layers(1), 0.02),
}
if os.environ.get("COLAJAX_PAPER_WIDTHS"):
    for count in (1, 2):
        given = (*of_layers(count), "accumulation_steps=4")  # for memory
        prior = (*given, *PAPER_DIT, f"dit.num_layers={count}")
        CASES[f"stage 1, the paper's widths, {count} layers, 8,192 tokens"] = ("vae", 16, 512, given, 0.01)
        CASES[f"stage 2, the paper's widths, {count} layers, 8,192 tokens"] = ("joint", 16, 512, prior, 0.01)


def away_from_start(params: dict, seed: int) -> dict:
    """No parameter zero or one: so that none has a gradient of zero, and no modulation is the identity."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return structure.unflatten([leaf + 0.02 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


def relative_errors(stage_name: str, rows: int, length: int, overrides: tuple) -> dict[str, float]:
    """{parameter: relative error of its gradient}. Words as often as in a text: the first is one in eight."""
    given = (*overrides, f"batch_size={rows}", f"sequence_length={length}")

    def gradients(dtype: str) -> dict:
        config = load_config(spec(stage_name), [*given, f"compute_dtype={dtype}"])
        stage = STAGES[stage_name](config, 0, 1)
        params = away_from_start(jax.jit(stage.init)(jax.random.key(0)), 1)
        frozen = {"reference": away_from_start(params["vae"]["encoder"], 2)} if stage_name == "joint" else {}
        share = 1 / np.arange(1, stage.vocab_size)
        tokens = 1 + np.random.default_rng(0).choice(len(share), (rows, length), p=share / share.sum())
        examples = stage.examples(jnp.asarray(tokens, jnp.int32), training_draw(1, 0, jnp.arange(rows)))
        run = jax.jit(
            lambda state, examples: batch_gradients(stage, state, examples, stage.groups, config.accumulation_steps)[0]
        )
        found = jax.device_get(run(TrainState(jnp.int32(0), params, {}, frozen), examples))
        return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}

    exact, rounded = gradients("float32"), gradients("bfloat16")
    return {name: np.linalg.norm(rounded[name] - g) / np.linalg.norm(g) for name, g in exact.items()}


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_s_gradient_is_near_that_of_float32(case):
    *made_of, expected = CASES[case]
    found = relative_errors(*made_of)
    assert len(found) == {"vae": 43, "joint": 75, "llada": 12}[made_of[0]]
    worst = max(found, key=found.get)
    assert found[worst] <= 0.03, worst
    assert 1e-3 < np.median(list(found.values())) <= expected  # below: it was not bfloat16


COUNT = 10_000  # in bfloat16 a sum of ones stands still at 256, or in parts of 16 of them at 4,096
BFLOAT16 = dict(dtype=jnp.bfloat16, rngs=nnx.Rngs(0))


def gradient_of_sum(module: nnx.Module, function, *arguments) -> dict:
    """By every parameter of the module, of the sum of function(module, *arguments), which is bfloat16 or float32."""
    graphdef, params = nnx.split(module)

    def total(params):
        return function(nnx.merge(graphdef, params), *arguments).astype(jnp.float32).sum()

    return nnx.to_pure_dict(jax.jit(jax.grad(total))(params))


def test_a_token_that_stands_ten_thousand_times():
    tokens = jnp.full((10, COUNT // 10), 7, jnp.int32)
    encoder = Encoder(tiny_models.VAE, **BFLOAT16)
    rows = gradient_of_sum(encoder, Encoder.embed, tokens)["embedding"]["embedding"]
    np.testing.assert_allclose(rows[7], COUNT, rtol=0.01)
    assert not rows[:7].any()
    assert not rows[8:].any()


@pytest.mark.parametrize("result", [jnp.bfloat16, jnp.float32])
def test_a_linear_layer_over_ten_thousand_positions(result):
    linear = layers.Linear(3, 4, (None, "embed"), result=result, **BFLOAT16)
    found = gradient_of_sum(linear, layers.Linear.__call__, jnp.ones((10, COUNT // 10, 3), jnp.bfloat16))
    np.testing.assert_allclose(found["bias"], COUNT, rtol=0.01)
    np.testing.assert_array_equal(found["kernel"], COUNT)  # which bfloat16 would round to 9,984


def test_a_norm_over_ten_thousand_positions():
    norm = layers.layer_norm(2, eps=0.0, **BFLOAT16)
    x = jnp.tile(jnp.array([-1.0, 1.0], jnp.bfloat16), (10, COUNT // 10, 1))
    found = gradient_of_sum(norm, lambda norm, x: norm(x), x)
    np.testing.assert_allclose(found["bias"], COUNT, rtol=0.01)
    np.testing.assert_allclose(found["scale"], [-COUNT, COUNT], rtol=0.01)
    norm = layers.rms_norm(2, eps=0.0, **BFLOAT16)
    np.testing.assert_allclose(gradient_of_sum(norm, lambda norm, x: norm(x), x)["scale"], [-COUNT, COUNT], rtol=0.01)


@pytest.mark.parametrize("use", ["shift", "scale", "gate"])
def test_a_modulation_over_ten_thousand_positions(use):
    """All positions share one time: of two samples, or as the clean one."""
    width = tiny_models.DIT.txt_dim
    modulation = Modulation(tiny_models.DIT, width if use == "gate" else 2 * width, **BFLOAT16)
    times = jnp.full((2, tiny_models.DIT.emb_dim), 50.0)
    is_noisy = jnp.stack([jnp.zeros((2, COUNT // 2), bool), jnp.ones((2, COUNT // 2), bool)], axis=1)
    x = jnp.ones((*is_noisy.shape, width), jnp.bfloat16)

    def apply(modulation, x):
        head = modulation(Embedding(times[:1], times, is_noisy))
        return add_gated(x, head, x) if use == "gate" else modulate(x, head)

    found = gradient_of_sum(modulation, apply, x)["linear"]
    where = slice(0, width) if use == "shift" else slice(-width, None)
    np.testing.assert_allclose(found["bias"][where], 2 * COUNT, rtol=0.01)
    np.testing.assert_allclose(found["kernel"][:, where], 50.0 * 2 * COUNT, rtol=0.01)


def test_a_kernel_s_gradient_has_the_dtype_that_devices_are_to_add_up():
    linear = layers.Linear(3, 4, (None, "embed"), **BFLOAT16)
    graphdef, params = nnx.split(linear)
    x = jax.random.normal(jax.random.key(0), (50, 3), jnp.bfloat16)

    def total(params):
        return (nnx.merge(graphdef, params)(x).astype(jnp.float32) ** 2).sum()

    exact, rounded = (jax.grad(total)(rounded_kernels(nnx.to_pure_dict(params), d)) for d in ("float32", "bfloat16"))
    assert (exact["kernel"].dtype, rounded["kernel"].dtype) == (jnp.float32, jnp.bfloat16)
    assert exact["bias"].dtype == rounded["bias"].dtype == jnp.float32
    np.testing.assert_allclose(rounded["kernel"].astype(jnp.float32), exact["kernel"], rtol=2**-8)
