"""What is evaluated: the model of a run, or of an export."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from etils import epath

from colajax.data.tokenizer import Tokenizer, pad_id_of
from colajax.errors import UserError
from colajax.hf import layout
from colajax.hf.import_run import export_tokenizer, groups_in
from colajax.parallel.mesh import make_mesh
from colajax.sampling.cola import EVERY_DEVICE, Sampler
from colajax.sampling.load import load_run
from colajax.sampling.self_check import check_sampler
from colajax.train.fingerprint import fingerprint

# The stage of a run -> what its models are called in files, tables and figures.
FAMILIES = {"joint": "cola", "ar": "ar", "llada": "llada"}


class Model(NamedTuple):
    """step: of a run's checkpoint, None of an export; trained_length: tokens of a row in training, where known."""

    sampler: Sampler
    tokenizer: Tokenizer
    family: str
    step: int | None
    compute_dtype: str
    trained_length: float = math.inf

    def facts(self) -> dict:
        """What tells it from another model, for a file."""
        return {
            "family": self.family, "step": self.step, "parameters": fingerprint(self.sampler.params),
            "tokenizer": self.tokenizer.digest, "compute_dtype": self.compute_dtype,
        }  # fmt: skip


def model_of_run(workdir: epath.PathLike, step: int | None = None) -> Model:
    """Errors as in `load_run`."""
    run = load_run(workdir, step)
    config = run.config
    return Model(run.sampler, run.tokenizer, FAMILIES[config["stage"]], run.step, config["compute_dtype"],
                 config["sequence_length"])  # fmt: skip


def model_of_export(hf: epath.PathLike) -> Model:
    """An export or a released checkpoint, in the precision that its config.json names. UserError on anything else."""
    folders, tokenizer = groups_in(hf), export_tokenizer(hf)
    if "dit" not in folders:
        raise UserError(f"{hf}: no {layout.DIT.folder}/ there; text is generated from a VAE with its prior")
    vae, dit = (layout.load(layout.KINDS[group], folders[group]) for group in ("vae", "dit"))
    if tokenizer.vocab_size > vae.config.vocab_size:
        raise UserError(f"{tokenizer.path}: {tokenizer.vocab_size} tokens; the VAE has only {vae.config.vocab_size}")
    dtype = dit.json.get("dtype") or dit.json.get("torch_dtype") or "float32"
    mesh, pad_id = make_mesh(EVERY_DEVICE), pad_id_of(tokenizer, vae.config.vocab_size)
    check_sampler(vae.config, dit.config, pad_id=pad_id, dtype=jnp.dtype(dtype), mesh=mesh)
    sampler = Sampler(
        vae.config, dit.config, vae.params, dit.params, pad_id=pad_id, eos_id=tokenizer.eos_id,
        token_count=tokenizer.vocab_size, dtype=jnp.dtype(dtype), mesh=mesh,
    )  # fmt: skip
    return Model(sampler, tokenizer, "cola", None, dtype)
