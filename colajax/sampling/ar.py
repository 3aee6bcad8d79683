"""Sampling from an autoregressive model: prompt -> cache -> tokens one by one, a stretch of them at a time.

Shape letters as in the models. An empty prompt is begun with the end token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from colajax.keys import Purpose, sample_keys
from colajax.models.attention import KVCache, append_to_cache
from colajax.models.config import LlamaConfig
from colajax.models.layers import Functional
from colajax.models.llama import Llama
from colajax.parallel.rules import laid_out, replicated
from colajax.sampling import tokens as token_choice
from colajax.sampling.base import UNIT, BaseSampler, choice_of, power_of_two, with_room
from colajax.sampling.settings import SamplingSettings

STRETCH = UNIT  # tokens from one answer of the device to the next


class State(NamedTuple):
    """What the next token is drawn from."""

    cache: KVCache  # (layers, B, J, H, K)
    length: jax.Array  # (B,), tokens in the cache
    logits: jax.Array  # (B, V), of the next token
    seen: jax.Array  # (B, V), new tokens


class ARSampler(BaseSampler):
    """The sampler of a causal LLaMA. Arguments as in BaseSampler; dtype: of compute and caches."""

    CONFIGS = {"llama": LlamaConfig}
    LAYERS = {"llama": ("num_hidden_layers",)}
    SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")

    def __init__(
        self, config: LlamaConfig, params: dict, *, pad_id: int, eos_id: int | None, token_count: int | None = None,
        dtype=jnp.float32, mesh: Mesh | None = None,
    ):  # fmt: skip
        models = self.models({"llama": config}, dtype)
        super().__init__(
            models, {"llama": params}, vocab_size=config.vocab_size, pad_id=pad_id, eos_id=eos_id,
            token_count=token_count, mesh=mesh,
        )  # fmt: skip
        self.config, self._llama = config, models["llama"]
        over_mesh, samples = laid_out(self.mesh), self.by_sample()
        state = State(self.cache_sharding(config.num_attention_heads), samples, samples, samples)
        self.prefill = jax.jit(over_mesh(self._prefill), static_argnames="capacity", out_shardings=state)
        self.stretch = jax.jit(
            over_mesh(self._stretch), donate_argnames="state", out_shardings=(state, replicated(self.mesh))
        )
        self._follow = jax.jit(over_mesh(self._next), donate_argnums=1, out_shardings=state)
        whole = replicated(self.mesh)
        self._scores = jax.jit(over_mesh(self._token_scores), out_shardings=(whole, whole))

    @staticmethod
    def models(configs: dict, dtype=jnp.float32) -> dict[str, Functional]:
        return {"llama": Functional(Llama, configs["llama"], causal=True, mask_row=False, dtype=dtype)}

    @classmethod
    def of(cls, configs: dict, params: dict, **others) -> "ARSampler":
        return cls(configs["llama"], params["llama"], **others)

    def generate(self, prompts, settings: SamplingSettings, *, sample_indices=None) -> list[list[int]]:
        if not prompts:
            return []
        budget = settings.max_new_tokens
        filled, indices = self.filled_up(prompts, sample_indices)
        state = self._begun(filled, budget)
        answers = [([], False) for _ in prompts]
        for done in range(0, budget, STRETCH):
            state, tokens = self.stretch(
                self.params, state, seed=np.uint32(settings.seed), indices_B=indices, done=np.int32(done),
                count=np.int32(min(STRETCH, budget - done)), choice=choice_of(settings),
            )  # fmt: skip
            new = np.asarray(tokens)[: len(prompts)].tolist()
            answers = [
                (so_far, True) if ended else self.answer(so_far + more, budget)
                for (so_far, ended), more in zip(answers, new, strict=True)
            ]
            if all(ended for _, ended in answers):
                break
        return [answer for answer, _ in answers]

    def log_likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation), token ids, the log-probability of the continuation behind the context and
        whether each of its tokens is the best one there. An empty context is begun as an empty prompt is."""
        if not pairs:
            return []
        contexts = self.begun([context for context, _ in pairs])
        rows = [[*context, *rest] for context, (_, rest) in zip(contexts, pairs, strict=True)]
        filled, _ = self.filled_up(rows, None)
        tokens, lengths = self.padded(self.begun(filled))
        starts = np.array([len(context) for context in contexts] + [1] * (len(filled) - len(rows)), np.int32)
        log_p, best = self._scores(self.params, tokens, starts, lengths)
        return [(float(p), bool(b)) for p, b in zip(np.asarray(log_p), np.asarray(best), strict=True)][: len(pairs)]

    def probe(self, prompts) -> dict[str, jax.Array]:
        """Behind the prompt, and behind one token more, which reads the prompt from the cache."""
        state = self._begun(self.filled_up(prompts, None)[0], 1)
        behind_prompt = state.logits + 0.0  # the next call takes the memory
        more = np.arange(len(state.length), dtype=np.int32) % self.vocab_size
        state = self._follow(self.params, state, more)
        return {"the first token": behind_prompt[: len(prompts)], "the second token": state.logits[: len(prompts)]}

    def _begun(self, prompts, budget: int) -> State:
        tokens, lengths = self.padded(self.begun(prompts))
        longest = -(-(int(lengths.max()) + budget) // STRETCH)
        capacity = max(tokens.shape[1], power_of_two(longest) * STRETCH)
        return self.prefill(self.params, tokens, lengths, capacity=capacity)

    def _prefill(self, params, tokens_BxT, length_B, *, capacity: int) -> State:
        """Fills a cache of `capacity` tokens with the prompts. What a row's padding leaves in it is overwritten before
        it is read."""
        model = self._llama.bind(params["llama"])
        h, kv = model.hidden(tokens_BxT, with_kv=True)
        last = jnp.take_along_axis(h, (length_B - 1)[:, None, None], axis=1)
        seen = jnp.zeros((len(tokens_BxT), self.vocab_size), bool)
        return State(with_room(kv, capacity), length_B, model.logits(last)[:, 0], seen)

    def _token_scores(self, params, tokens_BxT, start_B, length_B):
        """Sums of the log-probabilities of the tokens from start_B to length_B, and whether all are the best."""
        logits, _ = self._llama.bind(params["llama"])(tokens_BxT)
        targets, log_p = tokens_BxT[:, 1:], jax.nn.log_softmax(logits[:, :-1])
        places = jnp.arange(1, tokens_BxT.shape[1])
        counted = (places >= start_B[:, None]) & (places < length_B[:, None])
        of_targets = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        best = log_p.argmax(-1) == targets
        return jnp.where(counted, of_targets, 0).sum(1), (best | ~counted).all(1)

    def _next(self, params, state: State, token_B) -> State:
        """The state behind one token more a sample."""
        logits, kv = self._llama.bind(params["llama"])(
            token_B[:, None], positions=state.length[:, None], cache=state.cache, context_lengths=state.length,
            with_kv=True,
        )  # fmt: skip
        cache = append_to_cache(state.cache, kv, state.length)
        seen = state.seen.at[jnp.arange(len(token_B)), token_B].set(True)
        return State(cache, state.length + 1, logits[:, 0], seen)

    def _stretch(self, params, state: State, *, seed, indices_B, done, count, choice: dict):
        """Draws `count` tokens a sample, at most STRETCH, behind `done`. Returns (state, tokens (B, STRETCH))."""

        def draw(i, carried):
            state, tokens = carried
            keys = sample_keys(seed, Purpose.GENERATION_TOKENS, done + i, indices_B)
            candidates = self.text_alone(state.logits)[:, None]
            token = token_choice.choose(candidates, state.seen, keys, **choice)[:, 0]
            return self._next(params, state, token), tokens.at[:, i].set(token)

        tokens = jnp.full((len(state.length), STRETCH), self.pad_id, jnp.int32)
        return jax.lax.fori_loop(0, count, draw, (state, tokens))
