"""A run's checkpoint as a folder that stands on its own: the released layout, PyTorch classes, tokenizer, card."""

import datetime
import json
import pathlib
from collections.abc import Callable

from etils import epath

from colajax.data.tokenizer import SentencePieceTokenizer, Tokenizer, pad_id_of
from colajax.errors import UserError
from colajax.files import check_writable, read_json, whole
from colajax.hf import layout
from colajax.hf.model_card import NOTHING, Stated, model_card
from colajax.hf.tokenizer_json import tokenizer_config, tokenizer_json
from colajax.models.config import from_mapping
from colajax.train.checkpoint import reading
from colajax.train.kept import run_config
from colajax.train.stored import open_arrays

_CODE = pathlib.Path(__file__).parent / "pytorch"
# What each folder's classes import, and transformers' names for them.
_SHARED = ("configuration_cola.py", "layers_cola.py")
_PART_CODE = {
    "vae": ((*_SHARED, "modeling_cola_text_vae.py"), "ColaTextVAEConfig", "modeling_cola_text_vae.ColaTextVAEModel"),
    "dit": ((*_SHARED, "modeling_cola_dit.py"), "ColaDiTConfig", "modeling_cola_dit.ColaDiTModel"),
}
_WHOLE_CODE = (
    *_SHARED, "modeling_cola_text_vae.py", "modeling_cola_dit.py", "generation_cola.py", "modeling_cola.py",
)  # fmt: skip
MANIFEST = "manifest.json"
IMPORTED = "imported.json"  # in a workdir: what an import found in config.json and keeps for an export


def export(
    workdir, out, tokenizer: Tokenizer, settings: dict, *, step: int | None = None, dtype: str = "float32",
    stated: Stated = NOTHING, check: Callable[[epath.Path], None] | None = None,
) -> int:  # fmt: skip
    """Exports the checkpoint of `step` (the latest by default) to the folder `out` and returns the step.

    `out` must not exist; it appears when everything is in it and `check`, given the finished folder, has not raised.
    settings: of generation, as generation_config.json is to have them; stated: for the model card. Raises UserError on
    a run or a tokenizer that cannot be exported.
    """
    out = epath.Path(out)
    if out.exists():
        raise UserError(f"{out}: exists; remove it or name another folder")
    check_writable(out)
    config = run_config(workdir)
    step, params = open_arrays(workdir, step)
    written_tokenizer = tokenizer_json(tokenizer)
    with whole(out, last=MANIFEST) as partial:
        partial.mkdir()
        try:
            with reading(workdir, step):
                digests = _write_models(partial, workdir, config, params, dtype)
        except FloatingPointError as error:
            raise UserError(f"{workdir}: step {step} cannot be exported: {error}; name another step") from None
        (partial / "tokenizer.json").write_text(written_tokenizer)
        _write_json(partial / "tokenizer_config.json", tokenizer_config(tokenizer, written_tokenizer))
        if isinstance(tokenizer, SentencePieceTokenizer):
            # An import finds the very tokenizer that the records were made with.
            (partial / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
        if "dit" in params:
            _write_whole(partial, config, tokenizer, settings, dtype)
        (partial / "README.md").write_text(model_card(workdir, config, step, dtype, list(params), stated))
        made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest = {"format_version": 1, "step": step, "dtype": dtype, "made": made, "sha256": digests}
        _write_json(partial / MANIFEST, manifest)
        if check is not None:
            check(partial)
    return step


def _write_models(partial: epath.Path, workdir, config: dict, params: dict, dtype: str) -> dict[str, str]:
    """The folder of each part. Returns {"cola_vae/encoder.wte.weight": sha256, ...}."""
    kept = epath.Path(workdir) / IMPORTED
    imported = read_json(kept) if kept.exists() else {}
    digests = {}
    for group, tree in params.items():
        if group not in layout.KINDS:
            raise UserError(f"{workdir}: a parameter group {group!r}; an export knows {', '.join(layout.KINDS)}")
        kind = layout.KINDS[group]
        code, config_class, model_class = _PART_CODE[group]
        found = imported.get(kind.folder, {})
        saved = layout.save(
            kind, from_mapping(kind.config_class, config[group], f"{workdir}: {group}"), tree, partial / kind.folder,
            dtype=dtype, found=found.get("config"), tables=layout.as_tables(found.get("tables", {})),
            auto_map={"AutoConfig": f"configuration_cola.{config_class}", "AutoModel": model_class},
        )  # fmt: skip
        digests |= {f"{kind.folder}/{name}": digest for name, digest in saved.items()}
        for file in code:
            (partial / kind.folder / file).write_bytes((_CODE / file).read_bytes())
    return digests


def _write_whole(partial: epath.Path, config: dict, tokenizer: Tokenizer, settings: dict, dtype: str) -> None:
    """What makes one model of the two parts: its configuration, its classes, its generation settings."""
    special = {"pad_token_id": pad_id_of(tokenizer, config["vae"]["vocab_size"]), "eos_token_id": tokenizer.eos_id}
    whole = {
        "model_type": "cola_dlm",
        "token_count": tokenizer.vocab_size,
        "architectures": ["ColaModel"],
        "auto_map": {"AutoConfig": "configuration_cola.ColaConfig", "AutoModel": "modeling_cola.ColaModel"},
        "dtype": dtype,
        **special,
    }
    _write_json(partial / "config.json", whole)
    _write_json(partial / "generation_config.json", settings | special | {"do_sample": True})
    for file in _WHOLE_CODE:
        (partial / file).write_bytes((_CODE / file).read_bytes())


def _write_json(path: epath.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
