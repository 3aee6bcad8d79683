"""A run's checkpoint as a folder that stands on its own: the released layout, PyTorch classes, tokenizer, card."""

import datetime
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

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


class _Code(NamedTuple):
    """The files of a folder's classes, and transformers' names for these."""

    files: tuple[str, ...] = ()
    auto_map: dict | None = None


_SHARED = ("configuration_cola.py", "layers_cola.py")
_LLADA = "modeling_llada.LladaModel"
_PART_CODE = {
    layout.VAE.model_type: _Code(
        (*_SHARED, "modeling_cola_text_vae.py"),
        {"AutoConfig": "configuration_cola.ColaTextVAEConfig", "AutoModel": "modeling_cola_text_vae.ColaTextVAEModel"},
    ),
    layout.DIT.model_type: _Code(
        (*_SHARED, "modeling_cola_dit.py"),
        {"AutoConfig": "configuration_cola.ColaDiTConfig", "AutoModel": "modeling_cola_dit.ColaDiTModel"},
    ),
    layout.AR.model_type: _Code(),  # transformers' own
    layout.LLADA.model_type: _Code(
        ("configuration_llada.py", "layers_cola.py", "tokens_cola.py", "modeling_llada.py"),
        {"AutoConfig": "configuration_llada.LladaConfig", "AutoModel": _LLADA, "AutoModelForMaskedLM": _LLADA},
    ),
}
_WHOLE_CODE = (
    *_SHARED, "modeling_cola_text_vae.py", "modeling_cola_dit.py", "tokens_cola.py", "generation_cola.py",
    "modeling_cola.py",
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
        try:
            with reading(workdir, step):
                digests = _write_models(partial, workdir, config, params, tokenizer, dtype)
        except FloatingPointError as error:
            raise UserError(f"{workdir}: step {step} cannot be exported: {error}; name another step") from None
        (partial / "tokenizer.json").write_text(written_tokenizer)
        _write_json(partial / "tokenizer_config.json", tokenizer_config(tokenizer, written_tokenizer))
        if isinstance(tokenizer, SentencePieceTokenizer):
            # An import finds the very tokenizer that the records were made with.
            (partial / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
        if config["stage"] == "joint":
            _write_whole(partial, config, tokenizer, dtype)
        if config["stage"] != "vae":
            _write_generation(partial, config, tokenizer, settings)
        (partial / "README.md").write_text(model_card(workdir, config, step, dtype, stated))
        made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest = {"format_version": 1, "step": step, "dtype": dtype, "made": made, "sha256": digests}
        _write_json(partial / MANIFEST, manifest)
        if check is not None:
            check(partial)
    return step


def _write_models(
    partial: epath.Path, workdir, config: dict, params: dict, tokenizer: Tokenizer, dtype: str
) -> dict[str, str]:
    """The folder of each part. Returns {"cola_vae/encoder.wte.weight": sha256, ...}."""
    kept = epath.Path(workdir) / IMPORTED
    imported = read_json(kept) if kept.exists() else {}
    digests, kinds = {}, kinds_of(workdir, config)
    inert = {"token_count": tokenizer.vocab_size, **_special_ids(config, tokenizer)}
    for group, kind in kinds.items():
        tree, code = params[group], _PART_CODE[kind.model_type]
        found = imported.get(kind.folder, {})
        trained = {"max_position_embeddings": config["sequence_length"]} | found.get("config", {})
        inert["max_position_embeddings"] = trained["max_position_embeddings"]
        saved = layout.save(
            kind, from_mapping(kind.config_class, config[group], f"{workdir}: {group}"), tree, partial / kind.folder,
            dtype=dtype, found=found.get("config"), tables=layout.as_tables(found.get("tables", {})),
            auto_map=code.auto_map, inert={key: value for key, value in inert.items() if key in kind.inert},
        )  # fmt: skip
        digests |= {str(pathlib.PurePosixPath(kind.folder, name)): digest for name, digest in saved.items()}
        for file in code.files:
            (partial / kind.folder / file).write_bytes((_CODE / file).read_bytes())
    return digests


def kinds_of(workdir, config: dict) -> dict[str, layout.Kind]:
    """The models of a run by parameter group. Raises UserError on a stage that has no layout."""
    if config["stage"] not in layout.KINDS:
        raise UserError(f"{workdir}: a run of stage {config['stage']!r}; an export knows {', '.join(layout.KINDS)}")
    return layout.KINDS[config["stage"]]


def _special_ids(config: dict, tokenizer: Tokenizer) -> dict:
    """An empty prompt of AR and LLaDA is begun with the end token."""
    vocabulary = config[next(iter(layout.KINDS[config["stage"]]))]["vocab_size"]
    ids = {"pad_token_id": pad_id_of(tokenizer, vocabulary), "eos_token_id": tokenizer.eos_id}
    return ids | ({} if "vae" in config else {"bos_token_id": tokenizer.eos_id})


def _write_whole(partial: epath.Path, config: dict, tokenizer: Tokenizer, dtype: str) -> None:
    """What makes one model of Cola's two parts: its configuration and its classes."""
    whole = {
        "model_type": "cola_dlm",
        "token_count": tokenizer.vocab_size,
        "architectures": ["ColaModel"],
        "auto_map": {"AutoConfig": "configuration_cola.ColaConfig", "AutoModel": "modeling_cola.ColaModel"},
        "dtype": dtype,
        **_special_ids(config, tokenizer),
    }
    _write_json(partial / "config.json", whole)
    for file in _WHOLE_CODE:
        (partial / file).write_bytes((_CODE / file).read_bytes())


def _write_generation(partial: epath.Path, config: dict, tokenizer: Tokenizer, settings: dict) -> None:
    """generation_config.json: the settings, and for AR in transformers' own terms."""
    written = settings | _special_ids(config, tokenizer) | {"do_sample": True}
    if config["stage"] == "ar":
        written = {key: value for key, value in written.items() if key != "seed"}
        if settings.get("temperature") == 0:
            written = {key: value for key, value in written.items() if key not in ("temperature", "top_k", "top_p")}
            written["do_sample"] = False
        if without_text := list(range(tokenizer.vocab_size, config["llama"]["vocab_size"])):
            written["suppress_tokens"] = without_text
    if config["stage"] == "llada" and "steps" in settings and settings["steps"] == settings.get("max_new_tokens"):
        del written["steps"]  # as many as tokens, however many these are
    _write_json(partial / "generation_config.json", written)


def _write_json(path: epath.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
