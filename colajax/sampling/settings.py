"""How text is sampled."""

import dataclasses
import math

from colajax.errors import UserError

# What the released code and others call a setting.
OTHER_NAMES = {"guidance_scale": "guidance", "timestep_num": "steps", "diffusion_steps": "steps"}


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How to sample. steps: of Cola, Euler steps a block; of LLaDA, steps in which the answer is uncovered;
    block_length: of LLaDA, tokens that are uncovered before those behind them, 0 for all; temperature 0: the best
    token; top_k 0 and top_p 1: no restriction. A sampler reads those of its family (BaseSampler.SETTINGS); others
    change nothing.

    Raises UserError naming the key on a value out of range."""

    max_new_tokens: int = 32
    steps: int = 16
    block_length: int = 0
    guidance: float = 7.0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kinds = int if field.type is int else (int, float)
            infinite = isinstance(value, float) and not math.isfinite(value)
            if isinstance(value, bool) or not isinstance(value, kinds) or infinite:
                raise UserError(f"{field.name} is {value!r}: expected a finite {field.type.__name__}")
        for key, holds, expected in (
            ("max_new_tokens", 1 <= self.max_new_tokens < 2**31, "at least 1, less than 2**31"),
            ("steps", 1 <= self.steps < 2**31, "at least 1, less than 2**31"),
            ("block_length", 0 <= self.block_length < 2**31, "0 (the whole answer) or more"),
            ("guidance", self.guidance >= 0, "0 or more (1 is no guidance)"),
            ("temperature", self.temperature >= 0, "0 (the best token) or more"),
            ("top_k", 0 <= self.top_k < 2**31, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1 (off)"),
            ("repetition_penalty", self.repetition_penalty > 0, "more than 0 (1 is off)"),
            ("seed", 0 <= self.seed < 2**32, "0 to 2**32 - 1"),
        ):
            if not holds:
                raise UserError(f"{key} is {getattr(self, key)!r}: expected {expected}")


def named(given: dict) -> dict:
    """The settings given under our names or OTHER_NAMES, by our names; None is not given. Raises UserError on one that
    has two values."""
    names: dict[str, str] = {}
    for name in (name for name, value in given.items() if value is not None):
        setting = OTHER_NAMES.get(name, name)
        first = names.setdefault(setting, name)
        if given[first] != given[name]:
            raise UserError(f"{first} is {given[first]!r} and {name} is {given[name]!r}: expected one of the two names")
    return {setting: given[name] for setting, name in names.items()}
