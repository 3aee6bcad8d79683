"""The masked diffusion baseline, LLaDA: L = E_t 1/rate(t) sum over masked tokens of -log p(token | the others).

A share of the batches is cut to a random length. A cut row is a row whose rest is padding: shapes stay as they are, and
padding is neither masked, nor counted, nor read.
"""

import jax.numpy as jnp

from colajax.errors import UserError
from colajax.keys import Draw, Purpose, uniforms
from colajax.objectives.masked_diffusion import cut_lengths, mask_weights, masking_rate
from colajax.stages.base import exactly, sum_where, time_bins
from colajax.stages.llama import LlamaStage


class LLaDAStage(LlamaStage):
    """The bidirectional network as the loop sees it."""

    causal = False
    weights = {"masked_tokens": 1.0}
    DENOMINATORS = {"masked_tokens": "tokens", "accuracy": "masked", "masked_by_time": "masked_by_time"}

    def __init__(self, config, pad_id: int, eos_id: int):
        super().__init__(config, pad_id, eos_id)
        self.objective = o = config.objective
        if not 0 < o.least_rate < 1:
            raise UserError(f"config.objective.least_rate is {o.least_rate}: expected a probability between 0 and 1")
        if not 0 <= o.cut_probability <= 1:
            raise UserError(f"config.objective.cut_probability is {o.cut_probability}: expected 0 to 1")

    def examples(self, tokens, draw: Draw) -> dict:
        length, o = tokens.shape[1], self.objective
        kept = cut_lengths(uniforms(draw(Purpose.LENGTH), (2,)), length, o.cut_probability)
        tokens = jnp.where(jnp.arange(length) < kept[:, None], tokens, self.pad_id)
        time = uniforms(draw(Purpose.TIME), ())
        rate = masking_rate(time, o.least_rate)
        weight = mask_weights(uniforms(draw(Purpose.MASK), (length,)), rate, tokens != self.pad_id)
        return {"tokens": tokens, "time": time, "weight": weight}

    def counts(self, examples: dict) -> dict:
        masked = (examples["weight"] > 0).sum(-1).astype(jnp.float32)
        tokens = (examples["tokens"] != self.pad_id).sum().astype(jnp.float32)
        by_time = exactly(time_bins(examples["time"]).T, masked)
        return {"tokens": tokens, "masked": masked.sum(), "masked_by_time": by_time}

    def terms(self, params, frozen, examples, trainable, diagnostics=False) -> dict:
        tokens, weight = examples["tokens"], examples["weight"]
        masked = weight > 0
        view = jnp.where(masked, self.llama_config.mask_id, tokens)
        used = jnp.where(tokens != self.pad_id, jnp.arange(1, tokens.shape[1] + 1), 0).max(-1)
        nll, right = self.scores(params, view, tokens, self.documents(tokens), used)
        by_row = jnp.where(masked, nll, 0).sum(-1)
        return {
            "masked_tokens": (weight * nll).sum(),
            "accuracy": sum_where(masked, right),
            "masked_by_time": exactly(time_bins(examples["time"]).T, by_row),
        }

    def summarise(self, means: dict) -> dict[str, float]:
        """masked_tokens: a bound on the nats a token; accuracy, of masked tokens; by time, the mean cross-entropy of
        the masked tokens of rows in each tenth of 0..1."""
        by_time = means.pop("masked_by_time")
        report = {name: float(value) for name, value in means.items()}
        return report | {f"masked_time_0.{i}": float(value) for i, value in enumerate(by_time) if value}
