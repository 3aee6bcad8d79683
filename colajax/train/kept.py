"""The config.json that a run keeps: its configuration as JSON has it, and under "facts" what it read."""

import dataclasses
import json
import math

from etils import epath

from colajax.errors import UserError
from colajax.models.config import DiTConfig, LlamaConfig, VAEConfig
from colajax.parallel.mesh import AXES

_MODELS = {"vae": VAEConfig, "dit": DiTConfig, "llama": LlamaConfig}
# Every key of the configurations that ship, but for those of the models, with the type of its value or the values that
# it may have. A file has what it was written with only as long as nobody and nothing has touched it.
_EVERY_STAGE = {
    **dict.fromkeys(("seed", "data_seed", "batch_size", "sequence_length", "accumulation_steps", "total_steps"), int),
    **dict.fromkeys(("log_every", "eval_every", "checkpoint_every", "keep_every", "eval_rows"), int),
    **dict.fromkeys((f"mesh.{axis}" for axis in AXES), int),
    "records": str, "remat": str, "gradient_reduction": str, "compute_dtype": ("float32", "bfloat16"),
    **{f"optimizer.{key}": float for key in ("peak", "init_value", "end_value", "b1", "b2", "eps", "clip")},
    **{f"optimizer.{key}": int for key in ("warmup_steps", "decay_steps", "rewarm_from")},
    **{f"optimizer.{key}": list for key in ("weight_decay", "lr_ratio")},
    "facts.tokenizer": str, "budgets": list, "spike_sigmas": float, "skips_in_a_row": int,
    "hang_seconds": int, "records_cache": str, "damaged_rows": ("stop", "skip"), "max_epochs": float, "alerts": list,
    "isolate_documents": bool,
}  # fmt: skip
_TEXT_VAE = {
    "objective.beta": float, "objective.lambda_mask": float, "objective.mask_every": int, "objective.mask_rate": float,
    "objective.fixed_log_snr": float,
}  # fmt: skip
_JOINT = _TEXT_VAE | {
    "init_from": str, "init_step": int, "compute_params": int, "objective.time_distribution": str,
    "objective.train_vae": bool, "objective.interval": int, "objective.interval_joint": int,
    **{f"objective.{key}": float for key in (
        "lambda_vae", "lambda_fm", "lambda_ref", "time_loc", "time_scale", "prompt_probability")},
}  # fmt: skip
_AR = {"compute_params": int}
_LLADA = _AR | {"objective.least_rate": float, "objective.cut_probability": float}
# Of each stage, the models that it has and its own keys.
_STAGES = {
    "vae": (("vae",), _TEXT_VAE), "joint": (("vae", "dit"), _JOINT), "ar": (("llama",), _AR),
    "llada": (("llama",), _LLADA),
}  # fmt: skip
# What has come since runs were first kept, with the value that says what was done before: a run that is too old to have
# a key goes on with it. The options of the models are added by their classes.
ADDED = {
    "init_step": None, "optimizer.decay_steps": None, "optimizer.rewarm_from": 0, "gradient_reduction": "float32",
    "budgets": [], "spike_sigmas": 0.0, "skips_in_a_row": 10, "hang_seconds": 1800,
    "damaged_rows": "stop", "records_cache": "", "max_epochs": 4.0, "isolate_documents": False,
    "alerts": [["mean_variance", "below", 0.5, "warn"], ["gaussian_skill", "above", 0.5, "warn"]],
}  # fmt: skip
# Keys that may be None, with the type of their other values: JSON does not tell it.
NULLABLE = {
    "init_step": int, "optimizer.decay_steps": int, "objective.fixed_log_snr": float, "vae.clip_qkv": float,
}  # fmt: skip


def read_kept(path: epath.Path) -> dict:
    """The config.json of a run, with the value of each key that the run is too old to have. Raises UserError, naming
    the file and the key, unless it has all that a run of its stage needs, of the types that a run writes."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; expected the config.json of a run") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"no JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("stage"), str):
        raise _damaged(path, "expected a JSON object with a stage")
    defaults = defaults_of(found)
    for name, kind in _keys_of(found).items():
        *groups, last = name.split(".")
        node = found
        for group in groups:
            node = node.get(group)
            if not isinstance(node, dict):
                raise _damaged(path, f"{name} is missing")
        if last not in node and name not in defaults:
            raise _damaged(path, f"{name} is missing")
        value = node.setdefault(last, defaults.get(name))
        if not (_fits(value, kind) or (value is None and name in NULLABLE)):
            expected = kind.__name__ if isinstance(kind, type) else f"one of {', '.join(kind)}"
            raise _damaged(path, f"{name} is {str(value)[:100]!r}, expected {expected}")
    return found


def run_config(workdir: epath.PathLike) -> dict:
    """The configuration of the run in `workdir`, as kept when it began or went on, with its facts. Raises UserError
    where there is no run, or one that is damaged."""
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{workdir}: no run there (config.json not found); name the workdir of a training")
    return read_kept(path)


def defaults_of(config: dict) -> dict:
    """The value of every key that a run may be too old to have, {"a.b": value}."""
    models = {
        f"{group}.{key}": value
        for group, model in _MODELS.items() if group in config
        for key, value in dataclasses.asdict(model()).items()
    }  # fmt: skip
    return ADDED | dict.fromkeys(NULLABLE) | models


def nullable_of(config: dict) -> dict:
    """NULLABLE's part for a run of this stage."""
    return {name: kind for name, kind in NULLABLE.items() if name in _keys_of(config)}


def _keys_of(found: dict) -> dict:
    """The keys of a run of this stage, {"a.b": type or values}; of one that does not ship, those that all have."""
    groups, own = _STAGES.get(found["stage"], ((), {}))
    models = {
        f"{group}.{field.name}": NULLABLE.get(f"{group}.{field.name}", field.type)
        for group in groups for field in dataclasses.fields(_MODELS[group])
    }  # fmt: skip
    keys = _EVERY_STAGE | models | own
    begun = isinstance(found.get("facts"), dict) and "init" in found["facts"]
    return keys | ({"facts.init.step": int} if begun else {})


def _fits(value, kind) -> bool:
    if isinstance(kind, tuple):
        return value in kind
    if kind in (int, float):  # JSON may have a whole number for a float, and numbers that no run holds
        number = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
        return number and (kind is float or abs(value) < 2**31)
    return type(value) is kind


def _damaged(path: epath.Path, reason: str) -> UserError:
    return UserError(f"{path}: damaged or not the config.json of a run's workdir: {reason}; copy it again")
