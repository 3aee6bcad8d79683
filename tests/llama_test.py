"""The baselines' network against transformers' LLaMA, its counts at the paper's size, who sees whom, and its cache."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch
from masks_test import influence
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from colajax.models.attention import KVCache, append_to_cache
from colajax.models.config import LlamaConfig
from colajax.models.layers import Functional
from colajax.models.llama import Llama

CONFIG = tiny_models.LLAMA
SAMPLES, TOKENS = 3, 10
LENGTHS = np.array([10, 7, 4])
rng = np.random.default_rng(0)
THEIR_NAMES = {
    "norm_attn": "input_layernorm", "query": "self_attn.q_proj", "key": "self_attn.k_proj",
    "value": "self_attn.v_proj", "out": "self_attn.o_proj", "norm_ffn": "post_attention_layernorm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def llama(*, causal, mask_row=False, config=CONFIG, **options):
    return Functional(Llama, config, causal=causal, mask_row=mask_row, **options)


def their_names(tree: dict) -> dict[str, np.ndarray]:
    """Our tree under the names, and in the layouts, of LlamaForCausalLM."""
    found = {
        "model.embed_tokens.weight": tree["embedding"]["embedding"], "model.norm.weight": tree["norm"]["scale"],
        "lm_head.weight": tree["head"]["kernel"].T,
    }  # fmt: skip
    for ours, theirs in THEIR_NAMES.items():
        (leaf,) = tree["blocks"][ours].values()
        for layer, value in enumerate(np.asarray(leaf)):
            found[f"model.layers.{layer}.{theirs}.weight"] = value.T
    return found


@pytest.fixture(scope="module")
def params():
    return tiny_models.random_tree(llama(causal=True).shapes())


@pytest.fixture(scope="module")
def theirs(params):
    config = TheirConfig(
        **dataclasses.asdict(CONFIG), num_key_value_heads=CONFIG.num_attention_heads, tie_word_embeddings=False,
        attention_bias=False, mlp_bias=False, hidden_act="silu",
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval()
    weights = {name: torch.from_numpy(np.array(value)) for name, value in their_names(params).items()}
    model.load_state_dict(weights, strict=True)
    return model


def close(ours, theirs, share=1e-4):
    difference = np.linalg.norm(np.asarray(ours) - theirs)
    assert difference <= share * np.linalg.norm(theirs)


@pytest.mark.parametrize("causal", [True, False])
def test_logits_and_gradients_are_transformers(params, theirs, causal):
    tokens = rng.integers(0, CONFIG.vocab_size, (SAMPLES, TOKENS))
    used = np.arange(TOKENS) < LENGTHS[:, None]
    mix = rng.standard_normal((SAMPLES, TOKENS, CONFIG.vocab_size)).astype(np.float32) * used[..., None]

    def weighted(params):
        lengths = None if causal else jnp.asarray(LENGTHS)
        logits, _ = llama(causal=causal).bind(params)(tokens, lengths=lengths)
        return (logits * mix).sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(weighted, has_aux=True))(params)

    seen = np.broadcast_to(used[:, None, None, :], (SAMPLES, 1, TOKENS, TOKENS))
    additive = torch.from_numpy(np.where(seen, 0, np.finfo(np.float32).min).astype(np.float32))
    theirs.zero_grad()
    expected = theirs(torch.from_numpy(tokens), attention_mask=None if causal else additive).logits
    (expected * torch.from_numpy(mix)).sum().backward()
    close(np.asarray(logits)[used], expected.detach().numpy()[used])
    ours = their_names(gradients)
    for name, parameter in theirs.named_parameters():
        close(ours[name], parameter.grad.numpy())


@pytest.mark.parametrize("mask_row", [False, True])
def test_the_papers_parameters(mask_row):
    config = LlamaConfig()
    shapes = llama(causal=not mask_row, mask_row=mask_row, config=config).shapes()
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    assert sizes["embedding"] + sizes["head"] == 410_738_688 + mask_row * 2048
    norms = sum(leaf.size for name in ("norm_attn", "norm_ffn") for leaf in jax.tree.leaves(shapes["blocks"][name]))
    assert (sizes["blocks"] - norms, norms) == (1_811_939_328, 27 * 2 * 2048)
    assert sizes["norm"] == 2048
    assert math.prod(shapes["head"]["kernel"].shape) == 100278 * 2048  # the mask is never predicted


@pytest.mark.parametrize("causal", [True, False])
def test_who_sees_whom(params, causal):
    # Each position its own token, so that a row of the table stands for a position.
    tokens = rng.permutation(CONFIG.vocab_size)[: SAMPLES * TOKENS]

    def outputs(table):
        bound = llama(causal=causal).bind({**params, "embedding": {"embedding": table}})
        return bound(tokens.reshape(SAMPLES, -1), lengths=jnp.asarray(LENGTHS))[0]

    seen = influence(outputs, params["embedding"]["embedding"], 1)[:, tokens] > 0
    seen = seen.reshape(SAMPLES, TOKENS, SAMPLES, TOKENS)
    expected = np.tri(TOKENS, dtype=bool) if causal else np.ones((TOKENS, TOKENS), bool)
    for i, n in enumerate(LENGTHS):
        np.testing.assert_array_equal(seen[i, :n, i, :n], expected[:n, :n])
        assert not seen[i, :n, i, n:].any()
        assert not seen[i, :, np.arange(SAMPLES) != i].any()


def test_tokens_against_a_cache_are_the_rows_own(params):
    """Prompts of several lengths at once, then three tokens together, then one by one: the logits of the whole row."""
    model, tokens = llama(causal=True).bind(params), rng.integers(0, CONFIG.vocab_size, (SAMPLES, TOKENS + 5))
    whole, _ = model(tokens)
    _, kv = model(tokens[:, :TOKENS], with_kv=True)  # what lies behind a prompt is overwritten
    cache = KVCache(*(jnp.pad(x, ((0, 0), (0, 0), (0, 5), (0, 0), (0, 0))) for x in kv))
    seen = LENGTHS
    for size in (3, 1, 1):
        positions = seen[:, None] + np.arange(size)
        logits, kv = model(
            np.take_along_axis(tokens, positions, 1), positions=positions, cache=cache,
            context_lengths=jnp.asarray(seen), with_kv=True,
        )  # fmt: skip
        close(logits, np.take_along_axis(np.asarray(whole), positions[..., None], 1), 1e-5)
        cache, seen = append_to_cache(cache, kv, seen), seen + size
