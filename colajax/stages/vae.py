"""Stage 1: the text VAE on its own. L = -E log p(x | z0) + beta KL(q || N(0, I)) + lambda_mask L_mask."""

import jax

from colajax.stages.base import parameter_count
from colajax.stages.flops import Keys
from colajax.stages.text_vae import TextVAEStage


class VAEStage(TextVAEStage):
    """Stage 1 as the loop sees it."""

    groups = ("vae",)

    def __init__(self, config, pad_id: int, eos_id: int):
        super().__init__(config, pad_id, eos_id)
        self.weights = {"reconstruction": 1.0, "kl": config.objective.beta, "mask": config.objective.lambda_mask}

    def trainable(self, step: int) -> tuple[str, ...]:
        return self.groups

    def init(self, key: jax.Array) -> dict:
        return {"vae": self.vae.init(key)}

    def terms(self, params, frozen, examples, trainable, diagnostics=False) -> dict:
        return self.vae_terms(params["vae"], examples)[0]

    def step_flops(self, batch_size: int, trainable: tuple[str, ...], keys: Keys) -> dict[str, float]:
        return self.vae_flops(batch_size, keys)

    def compute_params(self) -> int:
        return parameter_count(self.vae.shapes())
