"""The samplers: caches against recomputation, independence of the batch, budgets and ends, the choice of tokens."""

import copy
import dataclasses

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
import tiny_models

from colajax.errors import UserError
from colajax.hf import layout
from colajax.sampling import tokens as token_choice
from colajax.sampling.cola import Sampler
from colajax.sampling.load import SAMPLERS
from colajax.sampling.settings import SamplingSettings, named

PAD = 39
# Empty, inside the first block, whole blocks, and a prefix with a rest; block_size is 4.
PROMPTS = [[], [3, 1, 4], [1, 5, 9, 2, 6, 5], [3, 5, 8, 9]]
DRAWN = SamplingSettings(
    max_new_tokens=10, steps=4, block_length=5, guidance=2.0, top_k=20, top_p=0.95, repetition_penalty=1.2, seed=7
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    vae = tiny_models.random_params(layout.VAE, tiny_models.VAE)
    return vae, tiny_models.random_params(layout.DIT, tiny_models.DIT)


@pytest.fixture(scope="module")
def sampler(params):
    return Sampler(tiny_models.VAE, tiny_models.DIT, *params, pad_id=PAD, eos_id=None)


@pytest.fixture(scope="module")
def samplers(sampler):
    """One of each family."""
    return {"joint": sampler} | {
        stage: tiny_models.random_sampler(SAMPLERS[stage], pad_id=PAD, eos_id=None) for stage in ("ar", "llada")
    }


@pytest.fixture(params=SAMPLERS)
def each(request, samplers):
    """A test that takes this is of every family."""
    return samplers[request.param]


def with_end(sampler, token):
    """The same sampler, with what it has compiled, for another end token."""
    other = copy.copy(sampler)
    other.eos_id = token
    return other


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_blocks_equal_recomputation_from_scratch(sampler, params, guidance):
    slow = [
        (dataclasses.asdict(config), {name: a.astype(np.float64) for name, a in layout.tensors(kind, config, tree)})
        for kind, config, tree in zip(
            (layout.VAE, layout.DIT), (tiny_models.VAE, tiny_models.DIT), params, strict=True
        )
    ]  # fmt: skip
    noise = np.random.default_rng(0).standard_normal((4, len(PROMPTS), 4, 4)).astype(np.float32)
    settings = SamplingSettings(steps=4, guidance=guidance, temperature=0, repetition_penalty=1.2)
    logits, tokens = zip(*sampler.blocks(PROMPTS, settings, 4, noise=noise), strict=True)
    for i, prompt in enumerate(PROMPTS):
        slow_logits, slow_tokens = reference.generate(
            *slow, prompt, noise[:, i], steps=4, guidance=guidance, pad=PAD, penalty=1.2
        )
        np.testing.assert_allclose(np.stack(logits)[:, i], slow_logits, atol=1e-4)
        assert [block[i].tolist() for block in tokens] == slow_tokens


def test_the_batch_changes_nothing(each):
    together = each.generate(PROMPTS, DRAWN)
    assert len({tuple(answer) for answer in together}) == len(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        assert each.generate([prompt], DRAWN, sample_indices=[i]) == [together[i]]
    order = [2, 0, 3, 1]
    shuffled = each.generate([PROMPTS[i] for i in order], DRAWN, sample_indices=order)
    assert shuffled == [together[i] for i in order]


def test_seed_and_sample_index_change_the_sample(each):
    prompts = [PROMPTS[1]] * len(PROMPTS)
    by_index = each.generate(prompts, DRAWN)
    assert len({tuple(answer) for answer in by_index}) == len(prompts)
    other = each.generate(prompts, dataclasses.replace(DRAWN, seed=8))
    assert all(a != b for a, b in zip(by_index, other, strict=True))


@pytest.mark.parametrize("budget", [1, 4, 5, 7])
def test_exactly_the_budget(sampler, budget):
    longer = sampler.generate(PROMPTS, DRAWN)
    assert [len(answer) for answer in longer] == [10] * len(PROMPTS)
    shorter = sampler.generate(PROMPTS, dataclasses.replace(DRAWN, max_new_tokens=budget))
    assert shorter == [answer[:budget] for answer in longer]


def test_the_end_token_ends_a_sample_and_is_left_out(each):
    prompts = PROMPTS[1:]  # an empty one may begin with the end token
    whole = each.generate(prompts, DRAWN)
    for token in {answer[3] for answer in whole}:
        found = with_end(each, token).generate(prompts, DRAWN)
        assert found == [full[: full.index(token)] if token in full else full for full in whole]


def test_stops_when_every_sample_has_ended(sampler):
    first = [int(t) for t in next(sampler.blocks([[]], DRAWN, 3))[1][0]]
    counting, steps = with_end(sampler, first[2]), []
    counting.block_step = lambda *args, **kwargs: steps.append(1) or sampler.block_step(*args, **kwargs)
    assert counting.generate([[]], DRAWN) == [first[: first.index(first[2])]]
    assert len(steps) == 1


def test_an_end_token_sampled_in_place_of_the_prompt_is_no_end(sampler):
    prompt, seed, only_there = PROMPTS[1], 0, []
    while not only_there:
        seed += 1
        settings = dataclasses.replace(DRAWN, seed=seed)
        first = [int(t) for t in next(sampler.blocks([prompt], settings, 4))[1][0]]
        whole = sampler.generate([prompt], settings)[0]
        assert whole[0] == first[len(prompt)]
        only_there = [t for t in first[: len(prompt)] if t not in whole]
    assert with_end(sampler, only_there[0]).generate([prompt], settings) == [whole]


def test_nothing_compiles_from_block_to_block(params):
    fresh = Sampler(tiny_models.VAE, tiny_models.DIT, *params, pad_id=PAD, eos_id=None)
    next(fresh.blocks(PROMPTS, DRAWN, 3))
    functions = (fresh.prefill, fresh.block_step, fresh._keys, fresh._normals)
    once = [function._cache_size() for function in functions]
    assert once[:2] == [1, 1]
    list(fresh.blocks(PROMPTS, DRAWN, 3))
    list(fresh.blocks([[1], [2] * 5, [], [4] * 7], DRAWN, 2))
    list(fresh.blocks(PROMPTS[:3], DRAWN, 3))  # filled up to four
    other = SamplingSettings(steps=2, guidance=3, temperature=0, top_k=0, top_p=1, repetition_penalty=2, seed=1)
    list(fresh.blocks(PROMPTS, other, 3))
    assert [function._cache_size() for function in functions] == once


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_ids_that_the_tokenizer_lacks_are_never_sampled(sampler, params, temperature):
    settings = SamplingSettings(max_new_tokens=24, steps=2, temperature=temperature, top_k=0, top_p=1)
    everything = {token for answer in sampler.generate(PROMPTS, settings) for token in answer}
    count = max(everything)  # of the ids that are sampled one is left out
    fewer = Sampler(tiny_models.VAE, tiny_models.DIT, *params, pad_id=PAD, eos_id=None, token_count=count)
    for (all_logits, best), (logits, tokens) in zip(
        sampler.blocks(PROMPTS, settings, 3), fewer.blocks(PROMPTS, settings, 3), strict=True
    ):
        np.testing.assert_array_equal(logits, all_logits)
        assert np.asarray(tokens).max() < count
        if temperature == 0:
            expected = np.where(np.asarray(best) < count, best, np.asarray(logits)[..., :count].argmax(-1))
            np.testing.assert_array_equal(tokens, expected)


def slow_kept(scores, top_k, top_p):
    """Indices that top-k, then top-p keep, one token after another."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    order = order[:top_k] if top_k else order
    weights = [np.exp(np.float64(scores[i]) - np.float64(scores[order[0]])) for i in order]
    kept, mass = [], 0.0
    for i, weight in zip(order, weights, strict=True):
        if kept and mass / sum(weights) >= top_p:
            break
        kept.append(i)
        mass += weight
    return set(kept)


LOGITS = hypothesis.extra.numpy.arrays(
    np.float32, 12, elements=st.floats(-8, 8, width=32, allow_subnormal=False), unique=True
)  # fmt: skip
first_call_compiles = hypothesis.settings(deadline=None)
restrict = jax.jit(token_choice.restrict)
penalise = jax.jit(token_choice.penalise)
choose = jax.jit(token_choice.choose)


@first_call_compiles
@hypothesis.given(LOGITS, st.integers(0, 15), st.floats(0.05, 1.0))
def test_top_k_then_top_p(scores, top_k, top_p):
    # A sum within rounding of top_p may fall on either side.
    kept = [slow_kept(scores, top_k, p) for p in (top_p - 1e-5, top_p, min(1.0, top_p + 1e-5))]
    hypothesis.assume(kept[0] == kept[1] == kept[2] or top_p == 1)
    restricted = np.asarray(restrict(scores, top_k, top_p))
    assert set(np.flatnonzero(np.isfinite(restricted))) == (slow_kept(scores, top_k, 2.0) if top_p == 1 else kept[1])
    np.testing.assert_array_equal(restricted[np.isfinite(restricted)], scores[np.isfinite(restricted)])


@first_call_compiles
@hypothesis.given(LOGITS, st.sets(st.integers(0, 11)), st.floats(0.5, 3.0, width=32))
def test_repetition_penalty_and_argmax(scores, seen, penalty):
    expected = [x if i not in seen else x * penalty if x < 0 else x / penalty for i, x in enumerate(scores.tolist())]
    mask = np.isin(np.arange(12), list(seen))[None]
    lowered = np.asarray(penalise(scores[None, None], mask, penalty))[0, 0]
    np.testing.assert_allclose(lowered, expected, rtol=1e-6, atol=1e-30)
    keys = jax.random.split(jax.random.key(0), 1)
    best = choose(
        scores[None, None], mask, keys, temperature=0.0, top_k=3, top_p=0.5, repetition_penalty=penalty
    )  # fmt: skip
    assert lowered[int(best[0, 0])] == lowered.max()


def test_draws_follow_the_restricted_distribution():
    scores, temperature, draws = np.linspace(-2, 2, 12, dtype=np.float32), 1.7, 4000
    seen = np.zeros((1, 12), bool)
    seen[0, 11] = True
    keys = jax.random.split(jax.random.key(3), 1)
    logits = jnp.broadcast_to(scores, (1, draws, 12))
    tokens = np.asarray(
        choose(logits, seen, keys, temperature=temperature, top_k=8, top_p=0.8, repetition_penalty=1.5)
    )[0]  # fmt: skip
    lowered = scores.astype(np.float64)
    lowered[11] /= 1.5
    kept = sorted(slow_kept(lowered / temperature, 8, 0.8))
    weights = np.exp(lowered[kept] / temperature)
    expected = np.zeros(12)
    expected[kept] = weights / weights.sum()
    spread = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(np.bincount(tokens, minlength=12) / draws - expected) <= 5 * spread).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_new_tokens", 0), ("steps", 0), ("steps", 2.5), ("block_length", -1), ("guidance", -1),
     ("guidance", float("nan")),
     ("temperature", -0.1), ("top_k", -1), ("top_p", 0), ("top_p", 1.5), ("repetition_penalty", 0), ("seed", -1),
     ("seed", 2**32), ("temperature", "hot"), ("top_k", True)],
)  # fmt: skip
def test_settings_out_of_range_are_named(key, value):
    with pytest.raises(UserError, match=f"^{key} is "):
        SamplingSettings(**{key: value})


def test_other_names_of_settings_mean_the_same():
    ours = {"steps": 5, "guidance": 2.0}
    assert named({"timestep_num": 5, "guidance_scale": 2.0, "seed": None}) == ours
    assert named({"diffusion_steps": 5, "steps": 5, "guidance": 2.0}) == ours
    for given in ({"steps": 5, "timestep_num": 6}, {"diffusion_steps": 5, "timestep_num": 6}):
        with pytest.raises(UserError, match=r"is 5 and .* is 6|is 6 and .* is 5"):
            named(given)
    with pytest.raises(UserError, match="guidance is -1"):
        Sampler.settings(named({"guidance_scale": -1.0}))


@pytest.mark.parametrize(
    ("prompts", "arguments", "message"),
    [([[1, 40]], {}, r"prompts\[0\]"), ([[1], [-1]], {}, r"prompts\[1\]"),
     ([[1]], {"sample_indices": [0, 1]}, "sample_indices"), ([[1]], {"sample_indices": [-1]}, "sample_indices"),
     ([[1]], {"noise": np.zeros((1, 1, 4, 4))}, "noise has shape"),
     ([[1]], {"noise": np.zeros((9, 1, 4, 5))}, "noise has shape")],
)  # fmt: skip
def test_bad_arguments_are_named(sampler, prompts, arguments, message):
    with pytest.raises(UserError, match=message):
        sampler.generate(prompts, DRAWN, **arguments)


def test_no_prompts_no_answers(each):
    assert each.generate([], DRAWN) == []
