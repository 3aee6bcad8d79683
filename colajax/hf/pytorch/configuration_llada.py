"""Configuration of LLaDA: a LLaMA without its causal mask, under the keys of transformers' LLaMA."""

from transformers import PretrainedConfig


class LladaConfig(PretrainedConfig):
    """token_count: of the tokenizer; ids from there on are never written. The mask is id vocab_size."""

    model_type = "llada_llama"

    def __init__(
        self, vocab_size=100278, hidden_size=2048, intermediate_size=8192, num_hidden_layers=27, num_attention_heads=16,
        rms_norm_eps=1e-5, rope_theta=10000.0, token_count=None, **kwargs,
    ):  # fmt: skip
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.rms_norm_eps, self.rope_theta, self.token_count = rms_norm_eps, rope_theta, token_count
        if kwargs.setdefault("tie_word_embeddings", False):
            raise ValueError(f"{self.model_type}: tie_word_embeddings is True: only False is supported")
        super().__init__(**kwargs)


LladaConfig.register_for_auto_class()
