"""A run's workdir as something to sample from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from colajax.data.tokenizer import Tokenizer, load_tokenizer, pad_id_of
from colajax.errors import UserError
from colajax.models.config import DiTConfig, VAEConfig, from_mapping
from colajax.parallel.mesh import make_mesh
from colajax.sampling.cola import EVERY_DEVICE, Sampler, parameters_like
from colajax.sampling.self_check import check_sampler
from colajax.train.checkpoint import read_params
from colajax.train.kept import run_config


class LoadedRun(NamedTuple):
    """A stage 2 run: its sampler, tokenizer, saved configuration, and the step of the checkpoint read."""

    sampler: Sampler
    tokenizer: Tokenizer
    config: dict
    step: int


def load_run(workdir, step: int | None = None) -> LoadedRun:
    """Reads the checkpoint of `step` (the latest by default) of a stage 2 run, divided over all devices, whatever mesh
    it was trained on. Raises UserError on anything else, and on parameters that are not finite."""
    config = run_config(workdir)
    if config["stage"] != "joint":
        raise UserError(f"{workdir}: a run of stage {config['stage']!r}; text is generated from one of stage 'joint'")
    tokenizer = run_tokenizer(workdir)
    vae_config = from_mapping(VAEConfig, config["vae"], f"{workdir}: vae")
    dit_config = from_mapping(DiTConfig, config["dit"], f"{workdir}: dit")
    mesh = make_mesh(EVERY_DEVICE)
    step, params = read_params(workdir, step, like=parameters_like(vae_config, dit_config, mesh))
    if not _all_finite(params):
        raise UserError(f"{workdir}: step {step} holds NaN or infinity among its parameters; name another step")
    pad_id, dtype = pad_id_of(tokenizer, vae_config.vocab_size), jnp.dtype(config["compute_dtype"])
    check_sampler(vae_config, dit_config, pad_id=pad_id, dtype=dtype, mesh=mesh)
    sampler = Sampler(
        vae_config, dit_config, params["vae"], params["dit"], pad_id=pad_id, eos_id=tokenizer.eos_id,
        token_count=tokenizer.vocab_size, dtype=dtype, mesh=mesh,
    )  # fmt: skip
    return LoadedRun(sampler, tokenizer, config, step)


@jax.jit
def _all_finite(params: dict) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()


def run_tokenizer(workdir) -> Tokenizer:
    """The tokenizer that a run keeps beside its checkpoints."""
    for name in ("tokenizer.model", "tokenizer.json"):
        path = epath.Path(workdir) / name
        if path.exists():
            return load_tokenizer(path)
    raise UserError(f"{workdir}: no tokenizer.model or tokenizer.json there; expected the workdir of a training")
