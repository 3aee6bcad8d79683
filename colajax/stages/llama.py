"""What the baselines share: one network, whose loss is a weighted cross-entropy of a token at every position."""

import jax
import jax.numpy as jnp

from colajax.models.config import LlamaConfig, from_mapping
from colajax.models.layers import Functional
from colajax.models.llama import Llama
from colajax.objectives import elbo
from colajax.stages.base import Stage, check_step, nominal_params, parameter_count
from colajax.stages.flops import TRAINED, Keys, llama_flops, unembedding_flops


class LlamaStage(Stage):
    """A stage with the parameter group "llama". Its examples have "weight" (B, T), what each position's target counts
    in the loss."""

    groups = ("llama",)
    causal: bool  # the mask of attention; the bidirectional network has a row more in its embedding, the masked token

    def __init__(self, config, pad_id: int, eos_id: int):
        self.llama_config: LlamaConfig = from_mapping(LlamaConfig, config.llama.to_dict(), "config.llama")
        self.sequence_length = config.sequence_length
        self.pad_id, self.eos_id, self.isolate_documents = pad_id, eos_id, config.isolate_documents
        self.vocab_size = self.llama_config.vocab_size
        check_step(config, self.rows_together)
        make = dict(causal=self.causal, mask_row=not self.causal, remat=config.remat)
        self.llama = Functional(Llama, self.llama_config, dtype=jnp.dtype(config.compute_dtype), **make)
        # The paper's 1.8e9 are the layers: its two tables of words have 0.4e9 more.
        shapes = self.llama.shapes()
        count = parameter_count({name: shapes[name] for name in ("blocks", "norm")})
        self.nominal_params = nominal_params(config.compute_params, count, "config.llama without its embeddings")

    def trainable(self, step: int) -> tuple[str, ...]:
        return self.groups

    def init(self, key: jax.Array) -> dict:
        return {"llama": self.llama.init(key)}

    def scores(self, params: dict, inputs, targets, documents, lengths=None):
        """-log p(target) (B, T) in nats, and (B, T) booleans: whether the target is the most likely token."""
        logits, _ = self.llama.bind(params["llama"])(inputs, lengths=lengths, documents_BxT=documents)
        with jax.named_scope("cross_entropy"):
            return elbo.cross_entropy(logits, targets), elbo.logit_of(logits, targets) >= logits.max(-1)

    def step_flops(self, batch_size: int, trainable: tuple[str, ...], keys: Keys) -> dict[str, float]:
        config, rows = self.llama_config, TRAINED * batch_size
        return {
            "layers": rows * llama_flops(config, self.sequence_length, keys, causal=self.causal),
            "unembedding": rows * unembedding_flops(config.hidden_size, config.vocab_size, self.sequence_length),
        }

    def compute_params(self) -> int:
        return self.nominal_params
