"""Configurations of Cola DLM, under the keys of the released checkpoints."""

from transformers import PretrainedConfig


class _Config(PretrainedConfig):
    """Takes the keys of `defaults`; `fixed` keys have one value, and another is refused by name."""

    defaults = {}
    fixed = {}

    def __init__(self, **kwargs):
        for key, default in {**self.defaults, **self.fixed}.items():
            setattr(self, key, kwargs.pop(key, default))
        for key, value in self.fixed.items():
            if getattr(self, key) != value:
                raise ValueError(f"{self.model_type}: {key} is {getattr(self, key)!r}: only {value!r} is supported")
        super().__init__(**kwargs)


class ColaTextVAEConfig(_Config):
    model_type = "cola_text_vae"
    defaults = {
        "vocab_size": 100278, "dim": 1536, "ffn_dim": 6144, "num_heads": 12, "encoder_num_blocks": 4,
        "decoder_num_blocks": 4, "latent_dim": 16, "patch_size": 1, "block_size": 4, "block_causal": True,
        "post_norm": True, "qk_norm": True, "qk_norm_affine": True, "qk_bias": False, "bias": True, "act": "swiglu",
        "clip_qkv": None, "layer_norm_eps": 1e-6, "layer_norm_affine": True, "encoder_last_ln": True,
        "use_variation": True, "rope_theta": 500000, "rope_full_precision": True, "scaling_factor": 1.0,
        "shifting_factor": 0.0,
    }  # fmt: skip
    fixed = {"shared_heads_kv": 1, "layer_norm_type": "layer_norm", "dropout": 0.0, "attn_dropout": 0.0}

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.act not in ("swiglu", "gelu", "silu"):
            raise ValueError(f"{self.model_type}: act is {self.act!r}: expected swiglu, gelu or silu")


class ColaDiTConfig(_Config):
    model_type = "cola_dit"
    defaults = {
        "txt_in_channels": 16, "txt_out_channels": 16, "txt_dim": 2048, "emb_dim": 2048, "heads": 16, "head_dim": 128,
        "expand_ratio": 4, "num_layers": 24, "norm_eps": 1e-5, "qk_bias": False, "rope_dim": 96, "block_size": 16,
    }  # fmt: skip
    fixed = {"patch_size": 1}

    # transformers gives a configuration without an __init__ of its own a generated one, which would not ask _Config.
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class ColaConfig(PretrainedConfig):
    """Of the whole model: the two parts keep their own configurations, in cola_vae/ and cola_dit/."""

    model_type = "cola_dlm"


for _config in (ColaTextVAEConfig, ColaDiTConfig, ColaConfig):
    _config.register_for_auto_class()
