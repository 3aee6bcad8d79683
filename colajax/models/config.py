"""The model configurations, under the key names of the released checkpoints and of Hugging Face's LLaMA."""

import dataclasses
import difflib
from collections.abc import Mapping

from colajax.errors import UserError

ACTIVATIONS = ("swiglu", "gelu", "silu")


def _check_fields(config) -> None:
    """Refuses values of the wrong type; an int is accepted where a float is meant."""
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), field.type
        allowed = kind if kind in (int, bool, str) else kind | int
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            name = getattr(kind, "__name__", kind)
            raise UserError(f"{type(config).__name__}.{field.name} is {value!r}: expected {name}")


def _require(config, key: str, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"{type(config).__name__}.{key} is {getattr(config, key)!r}: expected {expected}")


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Text VAE (encoder and conditional decoder). The defaults are the released ~500 M model."""

    vocab_size: int = 100278
    dim: int = 1536
    ffn_dim: int = 6144
    num_heads: int = 12
    encoder_num_blocks: int = 4
    decoder_num_blocks: int = 4
    latent_dim: int = 16
    patch_size: int = 1
    block_size: int = 16
    block_causal: bool = True
    post_norm: bool = True
    qk_norm: bool = True
    qk_norm_affine: bool = True
    qk_bias: bool = False
    bias: bool = True
    act: str = "swiglu"
    clip_qkv: float | None = None
    layer_norm_eps: float = 1e-6
    layer_norm_affine: bool = True
    encoder_last_ln: bool = True
    use_variation: bool = True
    rope_theta: float = 500000.0
    rope_full_precision: bool = True
    scaling_factor: float = 1.0
    shifting_factor: float = 0.0

    def __post_init__(self):
        _check_fields(self)
        _require(self, "act", self.act in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        for key in ("vocab_size", "dim", "ffn_dim", "num_heads", "latent_dim", "patch_size", "block_size"):
            _require(self, key, getattr(self, key) >= 1, "at least 1")
        for key in ("encoder_num_blocks", "decoder_num_blocks"):
            _require(self, key, getattr(self, key) >= 1, "at least 1")
        _require(self, "dim", self.dim % self.num_heads == 0, f"a multiple of num_heads ({self.num_heads})")
        _require(self, "dim", self.head_dim % 2 == 0, "an even head dimension (dim / num_heads), for RoPE")
        _require(self, "ffn_dim", self.act != "swiglu" or self.ffn_dim % 2 == 0, "an even number with act swiglu")
        _require(self, "clip_qkv", self.clip_qkv is None or self.clip_qkv > 0, "null or a positive number")
        _require(self, "layer_norm_eps", self.layer_norm_eps > 0, "a positive number")
        _require(self, "rope_theta", self.rope_theta > 0, "a positive number")
        _require(self, "scaling_factor", self.scaling_factor != 0, "a number other than 0")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def mask_id(self) -> int:
        """Row of the embedding that stands for a masked token: one past the vocabulary."""
        return self.vocab_size


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Block-causal DiT prior. The defaults are the released ~1.8 B model."""

    txt_in_channels: int = 16
    txt_out_channels: int = 16
    txt_dim: int = 2048
    emb_dim: int = 2048
    heads: int = 16
    head_dim: int = 128
    expand_ratio: int = 4
    num_layers: int = 24
    norm_eps: float = 1e-5
    qk_bias: bool = False
    patch_size: int = 1
    rope_dim: int = 96
    block_size: int = 16

    def __post_init__(self):
        _check_fields(self)
        _require(self, "patch_size", self.patch_size == 1, "1, the only patch size of the prior")
        for key in (
            "txt_in_channels",
            "txt_dim",
            "emb_dim",
            "heads",
            "head_dim",
            "expand_ratio",
            "num_layers",
            "block_size",
        ):
            _require(self, key, getattr(self, key) >= 1, "at least 1")
        _require(self, "norm_eps", self.norm_eps > 0, "a positive number")
        even = self.rope_dim % 2 == 0 and 0 <= self.rope_dim <= self.head_dim
        _require(self, "rope_dim", even, f"an even number from 0 to head_dim ({self.head_dim})")
        same = self.txt_out_channels == self.txt_in_channels
        _require(self, "txt_out_channels", same, f"txt_in_channels ({self.txt_in_channels}): a velocity is a latent")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """LLaMA, the network of the AR and LLaDA baselines, embeddings untied. The defaults are the paper's, ~1.8 B
    parameters in the layers; rms_norm_eps and rope_theta, which it does not give, are the prior's."""

    vocab_size: int = 100278
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self):
        _check_fields(self)
        for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        ):  # fmt: skip
            _require(self, key, getattr(self, key) >= 1, "at least 1")
        heads = self.num_attention_heads
        fits = self.hidden_size % heads == 0
        _require(self, "hidden_size", fits, f"a multiple of num_attention_heads ({heads})")
        even = self.head_dim % 2 == 0
        _require(self, "hidden_size", even, "an even head dimension (hidden_size / num_attention_heads), for RoPE")
        _require(self, "rms_norm_eps", self.rms_norm_eps > 0, "a positive number")
        _require(self, "rope_theta", self.rope_theta > 0, "a positive number")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def mask_id(self) -> int:
        """Row of LLaDA's embedding that stands for a masked token: one past the vocabulary."""
        return self.vocab_size


def from_mapping(cls, values: Mapping, where: str):
    """Builds one of these configurations from a mapping.

    Raises UserError, with the nearest name, on a key that `cls` does not have, or on a value it refuses.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(names)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_pair(vae: VAEConfig, dit: DiTConfig) -> None:
    """Raises UserError where the VAE and the prior do not fit each other."""
    if vae.latent_dim != dit.txt_in_channels:
        channels = f"config.dit.txt_in_channels is {dit.txt_in_channels}"
        raise UserError(f"{channels}: expected the VAE's latent_dim, {vae.latent_dim}")
    if dit.block_size % vae.block_size:
        raise UserError(
            f"config.dit.block_size is {dit.block_size}: expected the VAE's, {vae.block_size}, or a multiple of it"
        )
