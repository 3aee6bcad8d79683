"""A run's workdir as something to sample from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from colajax.data.tokenizer import Tokenizer, load_tokenizer, pad_id_of
from colajax.errors import UserError
from colajax.models.config import from_mapping
from colajax.parallel.mesh import make_mesh
from colajax.sampling.ar import ARSampler
from colajax.sampling.base import EVERY_DEVICE, BaseSampler, parameters_like
from colajax.sampling.cola import Sampler
from colajax.sampling.llada import LLaDASampler
from colajax.sampling.self_check import check_sampler
from colajax.train.checkpoint import read_params
from colajax.train.kept import run_config

# Of each stage that text can be generated from.
SAMPLERS: dict[str, type[BaseSampler]] = {"joint": Sampler, "ar": ARSampler, "llada": LLaDASampler}


class LoadedRun(NamedTuple):
    """A run that generates: its sampler, tokenizer, saved configuration, and the step of the checkpoint read."""

    sampler: BaseSampler
    tokenizer: Tokenizer
    config: dict
    step: int


def family_of(workdir) -> type[BaseSampler]:
    """The class that samples from a run. Raises UserError where no text is generated from its stage."""
    stage = run_config(workdir)["stage"]
    if stage not in SAMPLERS:
        raise UserError(f"{workdir}: a run of stage {stage!r}; text is generated from one of {', '.join(SAMPLERS)}")
    return SAMPLERS[stage]


def load_run(workdir, step: int | None = None) -> LoadedRun:
    """Reads the checkpoint of `step` (the latest by default) of a run that generates, divided over all devices,
    whatever mesh it was trained on. Raises UserError on anything else, and on parameters that are not finite."""
    family, config = family_of(workdir), run_config(workdir)
    tokenizer = run_tokenizer(workdir)
    configs = {
        group: from_mapping(kind, config[group], f"{workdir}: {group}") for group, kind in family.CONFIGS.items()
    }
    mesh = make_mesh(EVERY_DEVICE)
    step, params = read_params(workdir, step, like=parameters_like(family.models(configs), mesh))
    if not all_finite(params):
        raise UserError(f"{workdir}: step {step} holds NaN or infinity among its parameters; name another step")
    sampler = checked_sampler(family, configs, params, tokenizer, dtype=config["compute_dtype"], mesh=mesh)
    return LoadedRun(sampler, tokenizer, config, step)


def checked_sampler(
    family: type[BaseSampler], configs: dict, params: dict, tokenizer: Tokenizer, *, dtype: str, mesh: Mesh
) -> BaseSampler:
    """The sampler of a model, {group: configuration} and {group: tree}, after the check of its mesh; compute in
    `dtype`."""
    pad_id = pad_id_of(tokenizer, next(iter(configs.values())).vocab_size)
    check_sampler(family, configs, pad_id=pad_id, dtype=jnp.dtype(dtype), mesh=mesh)
    return family.of(
        configs, params, pad_id=pad_id, eos_id=tokenizer.eos_id, token_count=tokenizer.vocab_size,
        dtype=jnp.dtype(dtype), mesh=mesh,
    )  # fmt: skip


@jax.jit
def all_finite(params: dict) -> jax.Array:
    """Whether no parameter is NaN or infinite; what is generated from such is refused."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()


def run_tokenizer(workdir) -> Tokenizer:
    """The tokenizer that a run keeps beside its checkpoints."""
    for name in ("tokenizer.model", "tokenizer.json"):
        path = epath.Path(workdir) / name
        if path.exists():
            return load_tokenizer(path)
    raise UserError(f"{workdir}: no tokenizer.model or tokenizer.json there; expected the workdir of a training")
