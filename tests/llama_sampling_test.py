"""The baselines' samplers against slow obvious ones: no cache, no batch, no padding, one token after another."""

import dataclasses
import itertools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import tiny_models

from colajax.errors import UserError
from colajax.sampling.ar import ARSampler
from colajax.sampling.cola import Sampler
from colajax.sampling.llada import LLaDASampler, block_schedule, most_certain
from colajax.sampling.settings import SamplingSettings

PAD, END, VOCABULARY = 39, 38, 40
MASK = VOCABULARY
PROMPTS = [[], [3, 1, 4], list(range(2, 20)), [5]]
GREEDY = SamplingSettings(max_new_tokens=20, temperature=0.0, repetition_penalty=1.3, guidance=1.0)


@pytest.fixture(scope="module")
def ar():
    return tiny_models.random_sampler(ARSampler, pad_id=PAD, eos_id=END)


@pytest.fixture(scope="module")
def llada():
    return tiny_models.random_sampler(LLaDASampler, pad_id=PAD, eos_id=None)


def logits_of(sampler):
    """A function from a row of tokens to its logits, float64."""
    model = sampler._llama
    run = jax.jit(lambda tokens: model.bind(sampler.params["llama"])(tokens)[0])
    return lambda tokens: np.asarray(run(np.asarray(tokens, np.int32)[None])[0], np.float64)


@pytest.fixture(scope="module")
def llada_logits(llada):
    return logits_of(llada)


def lowered(logits, seen, penalty):
    """Logits of one position with the repetition penalty."""
    logits = logits.copy()
    for token in set(seen):
        logits[token] *= penalty if logits[token] < 0 else 1 / penalty
    return logits


def test_log_likelihoods_are_sums_over_tokens_in_float64(ar):
    logits = logits_of(ar)
    greedy = ar.generate([[3, 1, 4]], dataclasses.replace(GREEDY, repetition_penalty=1.0, max_new_tokens=5))[0]
    pairs = [([3, 1, 4], greedy), ([], [7]), ([5, 6], [8, END, 9]), (list(range(20)), [1] * 14), ([2], [])]
    for (context, rest), (log_p, best) in zip(pairs, ar.log_likelihoods(pairs), strict=True):
        row, expected, greedily = list(context or [END]), 0.0, True
        for token in rest:
            scores = logits(row)[-1]
            expected += scores[token] - np.logaddexp.reduce(scores)
            greedily &= token == scores.argmax()
            row.append(token)
        assert log_p == pytest.approx(expected, abs=1e-4)
        assert best == greedily
    assert ar.log_likelihoods([]) == []


def test_cached_tokens_equal_recomputation(ar):
    """Over more than one stretch of the device; an empty prompt is begun with the end token."""
    logits = logits_of(ar)
    for prompt, found in zip(PROMPTS, ar.generate(PROMPTS, GREEDY), strict=True):
        row, new = prompt or [END], []
        while len(new) < GREEDY.max_new_tokens and END not in new:
            behind = [*row, *new, *[PAD] * 48]  # filled up, for what is behind changes nothing
            here = logits(behind[:48])[len(row) + len(new) - 1]
            new.append(int(lowered(here, new, 1.3).argmax()))
        assert found == (new[: new.index(END)] if END in new else new)


def slow_llada(logits, prompt, *, length, block_length, steps, guidance, penalty):
    """The public sampler with numpy, one sample. Yields the answer after every step."""
    row = np.array([*prompt, *[MASK] * length])
    is_prompt = np.arange(len(row)) < len(prompt)
    blocks = length // block_length
    for block in range(blocks):
        end = len(prompt) + (block + 1) * block_length
        masks = int((row[len(prompt) : end] == MASK).sum())
        in_block = steps // blocks
        counts = [masks // in_block + (i < masks % in_block) for i in range(in_block)]
        for count in counts:
            scores = logits(row)
            without = logits(np.where(is_prompt, MASK, row))
            scores = without + guidance * (scores - without)
            seen = [t for t in row[len(prompt) :].tolist() if t != MASK]
            tokens = [int(lowered(s, seen, penalty).argmax()) for s in scores]
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            certainty = (weights / weights.sum(-1, keepdims=True))[np.arange(len(row)), tokens]
            certainty[end:] = -np.inf
            certainty[row != MASK] = -np.inf
            for place in sorted(range(len(row)), key=lambda i: -certainty[i])[:count]:
                row[place] = tokens[place]
            yield row[len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("block_length", "steps", "guidance"), [(0, 12, 1.0), (0, 1, 1.0), (0, 5, 2.5), (4, 6, 1.0)]
)
def test_uncovering_equals_the_public_sampler(llada, llada_logits, block_length, steps, guidance):
    settings = dataclasses.replace(
        GREEDY, max_new_tokens=12, block_length=block_length, steps=steps, guidance=guidance
    )
    found = llada.generate(PROMPTS, settings)
    how = dict(length=12, block_length=block_length or 12, steps=steps, guidance=guidance, penalty=1.3)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        states = [[MASK] * 12, *slow_llada(llada_logits, prompt or [PAD], **how)]
        assert answer == states[-1]
        for before, after in itertools.pairwise(states):
            assert all(b in (MASK, a) for b, a in zip(before, after, strict=True))


def test_more_steps_than_tokens_change_nothing(llada):
    one_each = dataclasses.replace(GREEDY, max_new_tokens=6, steps=6, temperature=1.0)
    assert llada.generate(PROMPTS, one_each) == llada.generate(PROMPTS, dataclasses.replace(one_each, steps=600))


@hypothesis.settings(deadline=None)
@hypothesis.given(
    hypothesis.extra.numpy.arrays(np.float32, (2, 7), elements=st.sampled_from([-3.0, -1.5, -0.5, -0.0])),
    hypothesis.extra.numpy.arrays(bool, (2, 7)), st.integers(0, 8),
)  # fmt: skip
def test_the_most_certain_are_kept(certainty, masked, count):
    kept = np.asarray(jax.jit(most_certain)(certainty, masked, count))
    for sample in range(2):
        places = [i for i in range(7) if masked[sample, i]]
        best = sorted(places, key=lambda i: (-certainty[sample, i], i))[:count]
        assert np.flatnonzero(kept[sample]).tolist() == sorted(best)


@pytest.mark.parametrize(
    ("given", "expected"),
    [((32, 0, 32), (32, 32)), ((32, 8, 16), (8, 4)), ((32, 0, 100), (32, 32)), ((32, 5, 32), "block_length is 5"),
     ((32, 8, 6), "steps is 6"), ((32, 64, 32), "block_length is 64")],
)  # fmt: skip
def test_blocks_and_their_steps(given, expected):
    settings = SamplingSettings(**dict(zip(("max_new_tokens", "block_length", "steps"), given, strict=True)))
    if isinstance(expected, tuple):
        assert block_schedule(settings) == expected
    else:
        with pytest.raises(UserError, match=f"^{expected}: expected"):
            block_schedule(settings)


def test_a_family_has_its_own_settings():
    assert Sampler.settings({"steps": 3}) == SamplingSettings(steps=3)
    assert LLaDASampler.settings({"max_new_tokens": 9}) == SamplingSettings(max_new_tokens=9, steps=9, guidance=1.0)
    assert LLaDASampler.settings({"steps": 4, "guidance": 2.0}) == SamplingSettings(steps=4, guidance=2.0)
    assert ARSampler.settings({"seed": 3}) == SamplingSettings(seed=3)
    for family, name in ((ARSampler, "guidance"), (ARSampler, "steps"), (Sampler, "block_length")):
        with pytest.raises(UserError, match=f"^{name} is not a setting"):
            family.settings({name: 2})


def test_settings_that_a_family_lacks_change_nothing(ar):
    others = dataclasses.replace(GREEDY, guidance=5.0, steps=3, block_length=7)
    assert ar.generate(PROMPTS, others) == ar.generate(PROMPTS, GREEDY)


@pytest.mark.parametrize("family", ["ar", "llada"])
def test_ids_that_the_tokenizer_lacks_are_never_sampled(family, request):
    sampler = request.getfixturevalue(family)
    both = [dataclasses.replace(GREEDY, temperature=t, top_k=0, top_p=1.0) for t in (0.0, 3.0)]
    highest = [max(token for answer in sampler.generate(PROMPTS, s) for token in answer) for s in both]
    count = min(highest)  # of the ids that are sampled one is left out
    fewer = tiny_models.random_sampler(type(sampler), pad_id=PAD, eos_id=None, token_count=count)
    assert all(token < count for settings in both for answer in fewer.generate(PROMPTS, settings) for token in answer)


def test_nothing_compiles_from_one_answer_to_the_next(ar, llada):
    settings = GREEDY
    for sampler, functions in ((ar, (ar.prefill, ar.stretch)), (llada, (llada.block_steps,))):
        sampler.generate(PROMPTS, settings)
        once = [function._cache_size() for function in functions]
        sampler.generate([[1], [2] * 20, [4] * 11], dataclasses.replace(settings, temperature=1.0, seed=4, steps=10))
        assert [function._cache_size() for function in functions] == once
