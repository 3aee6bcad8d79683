"""What is evaluated: the model of a run, or of an export."""

import math
from typing import NamedTuple

from etils import epath

from colajax.data.tokenizer import Tokenizer
from colajax.errors import UserError
from colajax.evals.families import FAMILIES
from colajax.hf import layout, shards
from colajax.hf.import_run import export_tokenizer
from colajax.parallel.mesh import make_mesh
from colajax.sampling import load as sampling
from colajax.sampling.base import EVERY_DEVICE, BaseSampler
from colajax.sampling.load import checked_sampler, load_run
from colajax.train.fingerprint import fingerprint


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
    stage = stage_of_export(hf)
    tokenizer, kinds = export_tokenizer(hf), layout.KINDS[stage]
    models = {group: layout.load(kind, epath.Path(hf) / kind.folder) for group, kind in kinds.items()}
    configs = {group: model.config for group, model in models.items()}
    vocabulary, found = next(iter(configs.values())).vocab_size, [*models.values()][-1].json
    if tokenizer.vocab_size > vocabulary:
        raise UserError(f"{tokenizer.path}: {tokenizer.vocab_size} tokens; the model has only {vocabulary}")
    dtype = found.get("dtype") or found.get("torch_dtype") or "float32"
    if not isinstance(dtype, str) or dtype not in shards.DTYPES:
        raise UserError(f"{hf}: config.json: dtype is {dtype!r}: expected one of {', '.join(shards.DTYPES)}")
    params = {group: model.params for group, model in models.items()}
    if not sampling.all_finite(params):
        raise UserError(f"{hf}: NaN or infinity among the parameters; export another step")
    family, mesh = sampling.SAMPLERS[stage], make_mesh(EVERY_DEVICE)
    sampler = checked_sampler(family, configs, params, tokenizer, dtype=dtype, mesh=mesh)
    return Model(sampler, tokenizer, FAMILIES[stage], None, dtype)


def stage_of_export(hf: epath.PathLike) -> str:
    """The stage of the runs that an export is of. Raises UserError where no text is generated from it."""
    stage = layout.stage_in(hf)
    if stage not in FAMILIES:
        raise UserError(f"{hf}: no {layout.DIT.folder}/ there; text is generated from a VAE with its prior")
    return stage
