"""A checkpoint in the released layout as a run: what training goes on from, and generation and evaluation read."""

import dataclasses
import json
from collections.abc import Callable, Iterable

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from colajax.data.tokenizer import Tokenizer, load_tokenizer
from colajax.errors import UserError
from colajax.files import check_writable, whole
from colajax.hf import layout, names
from colajax.hf.export import IMPORTED
from colajax.stages import stage_of
from colajax.train.checkpoint import step_folder
from colajax.train.digests import write_digests
from colajax.train.optimizer import optimizer_of
from colajax.train.state import state_shapes
from colajax.train.stored import create_zeros, open_arrays


def import_run(hf, workdir, config: ConfigDict, *, step: int = 0) -> None:
    """Makes `workdir`, a run at `step`, from the checkpoint in the folder `hf`, one tensor at a time.

    config: of the stage that the checkpoint fits; its model sections give way to the checkpoint's, and of the objective
    what needs a variance that the VAE lacks. The optimizer's state is fresh, and the frozen encoder of stage 2 is the
    imported one. The records are those of the first training. Raises UserError on anything that does not fit;
    `workdir`, which must not exist, appears when complete.
    """
    workdir = epath.Path(workdir)
    if workdir.exists():
        raise UserError(f"{workdir}: exists; remove it or name another folder")
    check_writable(workdir)
    expected = layout.stage_in(hf)
    kinds = layout.KINDS[expected]
    opened = {group: layout.open_model(kind, epath.Path(hf) / kind.folder) for group, kind in kinds.items()}
    if config.stage != expected:
        raise UserError(f"{hf}: fits a configuration of stage {expected!r}, this one is of {config.stage!r}")
    config = ConfigDict(config.to_dict())
    for group, model in opened.items():
        config[group] = dataclasses.asdict(model.config)
    if any(model.config != type(model.config)() for group, model in opened.items() if group != "vae"):
        config.compute_params = 0  # the configuration's is that of the paper's model
    if "vae" in opened and not config.vae.use_variation:
        _without_variance(config.objective, hf)
    tokenizer = export_tokenizer(hf)

    def write(partial: epath.Path) -> None:
        for group, model in opened.items():
            write_group(partial, group, names.from_hf(kinds[group].names, model.shapes, model.read))
        kept = {kinds[group].folder: {"config": model.json, "tables": layout.as_lists(model.tables)}
                for group, model in opened.items()}  # fmt: skip
        (partial / IMPORTED).write_text(json.dumps(kept, indent=2) + "\n")

    make_run(workdir, config, tokenizer, write, step=step)


def make_run(
    workdir: epath.Path, config: ConfigDict, tokenizer: Tokenizer, write: Callable[[epath.Path], None], *,
    step: int = 0,
) -> None:  # fmt: skip
    """Makes `workdir`, a run at `step` whose optimizer is fresh; `write`, given the unfinished folder with a checkpoint
    of zeros, fills in the parameters. Raises UserError on a configuration that does not fit itself or the tokenizer."""
    config = ConfigDict(config.to_dict())
    config.init_from = ""
    config.optimizer.rewarm_from = step  # its moments are fresh
    if not 0 <= step < config.total_steps:
        raise UserError(f"step is {step}: expected 0 to config.total_steps - 1 ({config.total_steps - 1})")
    vocabulary = config[stage_of(config).groups[0]].vocab_size
    if tokenizer.vocab_size > vocabulary:
        raise UserError(f"{tokenizer.path}: {tokenizer.vocab_size} tokens; the model's vocabulary has {vocabulary}")
    stage = stage_of(config)(config, 0, 0)  # whose shapes hang on no token
    shapes = state_shapes(stage, optimizer_of(config, stage))
    with whole(workdir, last="config.json") as partial:
        partial.mkdir()
        create_zeros(partial, dataclasses.replace(shapes, step=step))
        write(partial)
        write_digests(step_folder(partial, step))
        (partial / f"tokenizer{tokenizer.path.suffix}").write_bytes(tokenizer.path.read_bytes())
        facts = {"tokenizer": tokenizer.digest}
        (partial / "config.json").write_text(json.dumps({**config.to_dict(), "facts": facts}, indent=2) + "\n")


def write_group(workdir: epath.Path, group: str, parameters: Iterable[tuple[str, int | None, np.ndarray]]) -> None:
    """Writes (path, layer, array), as `names.from_hf` yields them, into the parameters of one group; the encoder also
    where the stage keeps a frozen one."""
    _, params = open_arrays(workdir, write=True)
    _, frozen = open_arrays(workdir, part="frozen", write=True)
    for path, layer, array in parameters:
        targets = [names.at(params[group], path)]
        if group == "vae" and path.startswith("encoder/") and "reference" in frozen:
            targets.append(names.at(frozen["reference"], path.removeprefix("encoder/")))
        for target in targets:
            target[... if layer is None else layer] = array


def _without_variance(objective: ConfigDict, hf) -> None:
    """The term that needs the variance of the latents gives way, as the model sections do."""
    if objective.beta:
        print(f"{hf}: its VAE has no variance (use_variation false): objective.beta is 0, not {objective.beta:g}")
        objective.beta = 0.0


def export_tokenizer(hf) -> Tokenizer:
    """An export's own .model is what its records were made with; the .json is a conversion of it."""
    for name in ("tokenizer.model", "tokenizer.json"):
        if (path := epath.Path(hf) / name).exists():
            return load_tokenizer(path)
    raise UserError(f"{hf}: no tokenizer.json there; expected one beside the model")
