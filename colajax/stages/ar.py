"""The autoregressive baseline: L = -E log p(next token | the tokens before it in the row)."""

import numpy as np

from colajax.keys import Draw
from colajax.objectives.next_token import next_tokens
from colajax.stages.base import sum_where
from colajax.stages.llama import LlamaStage


class ARStage(LlamaStage):
    """The causal network as the loop sees it. Nothing is drawn."""

    causal = True
    weights = {"next_token": 1.0}
    DENOMINATORS = {"next_token": "targets", "accuracy": "targets"}

    def examples(self, tokens, draw: Draw) -> dict:
        targets, weight = next_tokens(tokens, self.pad_id, self.documents(tokens))
        return {"tokens": tokens, "targets": targets, "weight": weight}

    def counts(self, examples: dict) -> dict:
        return {"targets": examples["weight"].sum()}

    def terms(self, params, frozen, examples, trainable, diagnostics=False) -> dict:
        tokens = examples["tokens"]
        nll, right = self.scores(params, tokens, examples["targets"], self.documents(tokens))
        weight = examples["weight"]
        return {"next_token": (weight * nll).sum(), "accuracy": sum_where(weight > 0, right)}

    def summarise(self, means: dict) -> dict[str, float]:
        """next_token in nats a token, and its exponential."""
        report = {name: float(value) for name, value in means.items()}
        return report | {"perplexity": float(np.exp(report["next_token"]))}
