"""What is evaluated: the model of a run, or of an export."""

import math
from typing import NamedTuple

from etils import epath

from colajax.data.tokenizer import Tokenizer
from colajax.errors import UserError
from colajax.hf import layout
from colajax.hf.import_run import export_tokenizer, groups_in
from colajax.parallel.mesh import make_mesh
from colajax.sampling.base import EVERY_DEVICE, BaseSampler
from colajax.sampling.cola import Sampler
from colajax.sampling.load import checked_sampler, load_run
from colajax.train.fingerprint import fingerprint

# The stage of a run -> what its models are called in files, tables and figures.
FAMILIES = {"joint": "cola", "ar": "ar", "llada": "llada"}


class Model(NamedTuple):
    """step: of a run's checkpoint, None of an export; trained_length: tokens of a row in training, where known."""

    sampler: BaseSampler
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
    configs, params = {"vae": vae.config, "dit": dit.config}, {"vae": vae.params, "dit": dit.params}
    sampler = checked_sampler(Sampler, configs, params, tokenizer, dtype=dtype, mesh=make_mesh(EVERY_DEVICE))
    return Model(sampler, tokenizer, "cola", None, dtype)
