"""Sampling from LLaDA: the answer stands behind the prompt as masks, of which every step uncovers the most certain.

Shape letters as in the models, and S tokens of a block. The answer is uncovered in blocks, one behind the other, each
in its share of the steps: in a step every masked token of the block is drawn, and those of the highest probability
under the plain softmax (of equals the first) are kept, as many as (tokens of the block) / (steps of the block), with
one more in each of the first steps where that leaves a remainder. A temperature is that of a Gumbel-max, in float32
where the public sampler has float64: a token of a probability below about 1e-7 is never drawn. An empty prompt is begun
with the end token: of masks alone none is more certain than another.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from colajax.errors import UserError
from colajax.keys import Purpose, sample_keys
from colajax.models.config import LlamaConfig
from colajax.models.layers import Functional
from colajax.models.llama import Llama
from colajax.parallel.rules import laid_out, replicated
from colajax.sampling import tokens as token_choice
from colajax.sampling.base import UNIT, BaseSampler, choice_of
from colajax.sampling.settings import SamplingSettings


class LLaDASampler(BaseSampler):
    """The sampler of a bidirectional LLaMA with a mask. Arguments as in BaseSampler; dtype: of compute.

    The public sampler's guidance w is `guidance` = w + 1 here.
    """

    CONFIGS = {"llama": LlamaConfig}
    LAYERS = {"llama": ("num_hidden_layers",)}
    SETTINGS = (
        "max_new_tokens", "steps", "block_length", "guidance", "temperature", "top_k", "top_p", "repetition_penalty",
        "seed",
    )  # fmt: skip
    DEFAULTS = {"guidance": 1.0}

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
        over_mesh, whole, samples = laid_out(self.mesh), replicated(self.mesh), self.by_sample()
        self.block_steps = jax.jit(
            over_mesh(self._block_steps), static_argnames=("size", "guided"),
            donate_argnames=("tokens_BxT", "seen_BxV"), out_shardings=(samples, samples, whole),
        )  # fmt: skip
        self._first_logits = jax.jit(over_mesh(self._logits_behind_prompt), out_shardings=samples)
        self._over_samples = lambda array: jax.device_put(array, samples)

    @staticmethod
    def models(configs: dict, dtype=jnp.float32) -> dict[str, Functional]:
        return {"llama": Functional(Llama, configs["llama"], causal=False, mask_row=True, dtype=dtype)}

    @classmethod
    def of(cls, configs: dict, params: dict, **others) -> "LLaDASampler":
        return cls(configs["llama"], params["llama"], **others)

    @classmethod
    def settings(cls, given: dict) -> SamplingSettings:
        """As in BaseSampler; without `steps` there are as many as tokens."""
        steps = given.get("max_new_tokens", SamplingSettings.max_new_tokens)
        return super().settings({"steps": steps, **given})

    def generate(self, prompts, settings: SamplingSettings, *, sample_indices=None) -> list[list[int]]:
        """As in BaseSampler. Raises UserError also on a block_length that does not divide max_new_tokens, or into
        blocks of which each has no whole number of steps."""
        if not prompts:
            return []
        budget = settings.max_new_tokens
        size, steps = block_schedule(settings)
        filled, indices = self.filled_up(prompts, sample_indices)
        tokens, prompt = self._with_masks(filled, budget)
        tokens, seen = self._over_samples(tokens), self._over_samples(np.zeros((len(filled), self.vocab_size), bool))
        produced: list[list[int]] = [[] for _ in prompts]
        for block in range(budget // size):
            tokens, seen, new = self.block_steps(
                self.params, tokens, seen, prompt_B=prompt, used_B=prompt + np.int32(budget), block=np.int32(block),
                steps=np.int32(steps), size=size, guidance=np.float32(settings.guidance),
                guided=settings.guidance != 1, seed=np.uint32(settings.seed), indices_B=indices,
                choice=choice_of(settings),
            )  # fmt: skip
            for sample, more in zip(produced, np.asarray(new)[: len(prompts)].tolist(), strict=True):
                sample.extend(more)
            answers = [self.answer(sample, budget) for sample in produced]
            if all(ended for _, ended in answers):
                break
        return [answer for answer, _ in answers]

    def probe(self, prompts) -> dict[str, jax.Array]:
        """Of a whole masked answer of UNIT tokens, at its first token."""
        tokens, prompt = self._with_masks(self.filled_up(prompts, None)[0], UNIT)
        logits = self._first_logits(self.params, tokens, prompt, prompt + np.int32(UNIT))
        return {"the first token": logits[: len(prompts)]}

    def _logits_behind_prompt(self, params, tokens_BxT, prompt_B, used_B):
        model = self._llama.bind(params["llama"])
        h, _ = model.hidden(tokens_BxT, lengths=used_B)
        return model.logits(jnp.take_along_axis(h, prompt_B[:, None, None], axis=1))[:, 0]

    def _with_masks(self, prompts, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (B, T): prompts, `budget` masks behind each, padding; (B,) lengths of the prompts."""
        tokens, prompt = self.padded(self.begun(prompts), budget)
        behind = np.arange(tokens.shape[1]) - prompt[:, None]
        return np.where((behind >= 0) & (behind < budget), self.config.mask_id, tokens).astype(np.int32), prompt

    def _block_steps(
        self, params, tokens_BxT, seen_BxV, *, prompt_B, used_B, block, steps, size: int, guidance, guided: bool, seed,
        indices_B, choice: dict,
    ):  # fmt: skip
        """Uncovers one block of `size` tokens in `steps` steps. prompt, used: tokens of the prompt, and of the prompt
        with the whole answer, behind which nothing is read. Returns (tokens, seen, the block's tokens (B, S))."""
        model, mask = self._llama.bind(params["llama"]), self.config.mask_id
        places = (prompt_B + block * size)[:, None] + jnp.arange(size)
        of_prompt = jnp.arange(tokens_BxT.shape[1]) < prompt_B[:, None]
        sample = jnp.arange(len(places))[:, None]

        def logits_of(tokens):
            h, _ = model.hidden(tokens, lengths=used_B)
            return model.logits(jnp.take_along_axis(h, places[..., None], axis=1))

        def uncover(step, carried):
            tokens, seen = carried
            logits = logits_of(tokens)
            if guided:
                alone = logits_of(jnp.where(of_prompt, mask, tokens))
                logits = alone + guidance * (logits - alone)
            keys = sample_keys(seed, Purpose.GENERATION_TOKENS, block * steps + step, indices_B)
            drawn = token_choice.choose(self.text_alone(logits), seen, keys, **choice)
            certainty = odds_of(logits, drawn)
            now = jnp.take_along_axis(tokens, places, axis=1)
            kept = most_certain(certainty, now == mask, size // steps + (step < size % steps))
            tokens = tokens.at[sample, places].set(jnp.where(kept, drawn, now))
            return tokens, seen.at[sample, drawn].max(kept)

        tokens, seen = jax.lax.fori_loop(0, steps, uncover, (tokens_BxT, seen_BxV))
        return tokens, seen, jnp.take_along_axis(tokens, places, axis=1)


def block_schedule(settings: SamplingSettings) -> tuple[int, int]:
    """(tokens of a block, steps of a block): more steps than tokens would uncover nothing in the last of them. Raises
    UserError on settings that do not divide."""
    budget, size = settings.max_new_tokens, settings.block_length or settings.max_new_tokens
    if budget % size:
        raise UserError(f"block_length is {size}: expected a divisor of max_new_tokens ({budget}), or 0")
    blocks = budget // size
    if settings.steps % blocks:
        raise UserError(f"steps is {settings.steps}: expected a multiple of the {blocks} blocks of {size} tokens")
    return size, min(size, settings.steps // blocks)


def odds_of(logits_BxSxV, token_BxS):
    """log p / (1 - p) of tokens, p under the plain softmax, (B, S). It is as p is, and where p rounds to 1, which a
    trained model's often do, it still tells the more certain one."""
    is_token = jnp.arange(logits_BxSxV.shape[-1]) == token_BxS[..., None]
    own = jnp.take_along_axis(logits_BxSxV, token_BxS[..., None], axis=-1)[..., 0]
    return own - jax.nn.logsumexp(jnp.where(is_token, -jnp.inf, logits_BxSxV), axis=-1)


def most_certain(certainty_BxS, masked_BxS, count):
    """Which of the masked tokens are kept, (B, S) booleans: the `count` of the highest certainty, of equals the
    first."""
    falling = jnp.argsort(jnp.where(masked_BxS, -certainty_BxS, jnp.inf), axis=-1, stable=True)
    place = jnp.argsort(falling, axis=-1, stable=True)
    return masked_BxS & (place < count)
