"""The released checkpoint layout: a folder a model with config.json and model.safetensors (or numbered shards). The
baselines' models are one each, in the export's own folder, AR's as transformers has it."""

import dataclasses
import functools
import json
import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from etils import epath

from colajax.errors import UserError
from colajax.hf import names, shards
from colajax.models.config import DiTConfig, LlamaConfig, VAEConfig, from_mapping
from colajax.models.dit import ROPE_THETA, DiT
from colajax.models.layers import Functional, rope_frequencies
from colajax.models.llama import Llama
from colajax.models.text_vae import TextVAE

ROPE_NAME = "blocks.{i}.msa.rope.rope.freqs"


class Kind(NamedTuple):
    """One model of the layout."""

    folder: str  # "" is the export's own
    model_type: str
    architecture: str
    config_class: type
    names: list
    make: Callable
    fixed: dict  # keys that the model has one value for; another value is refused by name
    inert: dict  # keys that are kept and change nothing, with what an export of ours writes
    defaults: dict = {}  # of keys that are left out, where they are not the config class's own
    derived: dict = {}  # keys whose one value is a function of the config; left out or null is that


VAE = Kind(
    "cola_vae", "cola_text_vae", "ColaTextVAEModel", VAEConfig, names.VAE_NAMES, TextVAE,
    fixed={"shared_heads_kv": 1, "layer_norm_type": "layer_norm", "dropout": 0.0, "attn_dropout": 0.0},
    inert={"use_emb": True, "causal": False, "init_fn": "normal", "init_std": 0.02, "init_cutoff_factor": 3},
    defaults={"block_size": 4},  # of the released config class, unlike the released checkpoint
)  # fmt: skip
DIT = Kind("cola_dit", "cola_dit", "ColaDiTModel", DiTConfig, names.DIT_NAMES, DiT, fixed={}, inert={})

AR = Kind(
    "", "llama", "LlamaForCausalLM", LlamaConfig, names.LLAMA_NAMES,
    functools.partial(Llama, causal=True, mask_row=False),
    fixed={"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
           "attention_dropout": 0.0, "pretraining_tp": 1, "rope_scaling": None},
    inert={"max_position_embeddings": 2048, "initializer_range": 0.02, "use_cache": True, "bos_token_id": None,
           "eos_token_id": None, "pad_token_id": None},
    defaults={"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
              "num_attention_heads": 32, "rms_norm_eps": 1e-6},
    derived={"num_key_value_heads": operator.attrgetter("num_attention_heads"),
             "head_dim": operator.attrgetter("head_dim")},
)  # fmt: skip
LLADA = Kind(
    "", "llada_llama", "LladaModel", LlamaConfig, names.LLAMA_NAMES,
    functools.partial(Llama, causal=False, mask_row=True),
    fixed={"tie_word_embeddings": False},
    inert={"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "token_count": None},
)  # fmt: skip
# The models of a run, by its stage and their parameter groups.
KINDS = {"vae": {"vae": VAE}, "joint": {"vae": VAE, "dit": DIT}, "ar": {"llama": AR}, "llada": {"llama": LLADA}}

# Written by other tools into any config.json; kept as found.
_ENVELOPE = ("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "auto_map")


Config = VAEConfig | DiTConfig | LlamaConfig


class HFModel(NamedTuple):
    """A model read from the layout: its config, float32 parameters (numpy, our tree), config.json as found, and the
    rotary tables as found (name -> array), whose last bits hang on the machine that made them."""

    config: Config
    params: dict
    json: dict
    tables: dict


def stage_in(hf) -> str:
    """The stage of the runs that a checkpoint fits. Raises UserError where there is none."""
    hf = epath.Path(hf)
    if (hf / VAE.folder).is_dir():
        return "joint" if (hf / DIT.folder).is_dir() else "vae"
    path = hf / "config.json"
    baselines = {kind.model_type: stage for stage, kinds in KINDS.items() for kind in kinds.values() if not kind.folder}
    if not path.exists():
        raise UserError(f"{hf}: no {VAE.folder}/ there, and no config.json; expected a checkpoint of a family")
    found = _read_json(path, " or ".join(baselines)).get("model_type")
    if not isinstance(found, str) or found not in baselines:
        expected = f"expected {' or '.join(map(repr, baselines))}, or a folder {VAE.folder}/ beside it"
        raise UserError(f"{path}: model_type is {found!r}: {expected}")
    return baselines[found]


def _read_json(path: epath.Path, model_type: str) -> dict:
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); expected a {model_type} configuration") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; expected a {model_type} configuration")
    return found


def read_config(kind: Kind, folder) -> tuple[Config, dict]:
    """The model's config and the whole config.json. Raises UserError on a missing file, another model_type, an unknown
    key, or an option that the model does not have."""
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{path}: not found; expected the config.json of a {kind.model_type} checkpoint")
    found = _read_json(path, kind.model_type)
    if found.get("model_type") != kind.model_type:
        raise UserError(f"{path}: model_type is {found.get('model_type')!r}: expected {kind.model_type!r}")
    said = _with_plain_rope(found) if kind is AR else found
    given = {key: value for key, value in said.items() if key not in kind.derived or value is not None}
    others = (*kind.fixed, *kind.derived, *kind.inert, *_ENVELOPE)
    _check_only(path, given, kind.fixed)
    known = kind.defaults | {key: value for key, value in given.items() if key not in others}
    config = from_mapping(kind.config_class, known, str(path))
    _check_only(path, given, {key: of(config) for key, of in kind.derived.items()})
    return config, found


def _check_only(path: epath.Path, given: dict, only: dict) -> None:
    for key, value in only.items():
        if given.get(key, value) != value:
            raise UserError(f"{path}: {key} is {given[key]!r}: only {value!r} is supported")


def _with_plain_rope(found: dict) -> dict:
    """LLaMA's configuration with the rotary embedding as older transformers write it: rope_theta, and a rope_scaling
    that is None where there is none. Newer ones have both in rope_parameters."""
    said = {key: value for key, value in found.items() if key not in ("rope_parameters", "rope_scaling")}
    for rope in (found.get("rope_scaling"), found.get("rope_parameters")):
        if isinstance(rope, dict) and [rope.get(key, "default") for key in ("rope_type", "type")] == ["default"] * 2:
            said |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
        elif rope is not None:
            said["rope_scaling"] = rope
    return said


def _stored_tensors(folder: epath.Path) -> dict[str, shards.Stored]:
    """The tensors of a model by name, from the shards that an index names or from the single file."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.exists():
        if not single.exists():
            raise UserError(f"{folder}: expected model.safetensors or model.safetensors.index.json")
        return shards.stored_in(single)
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        files = dict.fromkeys(weight_map.values())
        shard_of = {file: folder / file for file in files}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{index}: no readable weight_map; expected a safetensors index") from None
    files = {file: shards.stored_in(shard) for file, shard in shard_of.items()}
    for name, file in weight_map.items():
        if name not in files[file]:
            raise UserError(f"{folder / file}: tensor {name} is not in it, though the index says so")
    return {name: files[file][name] for name, file in weight_map.items()}


class OpenModel(NamedTuple):
    """A model of the layout, checked: its config, config.json as found, the rotary tables as found, the shapes of our
    parameters, and `read`, which fetches one tensor by its HF name."""

    config: Config
    json: dict
    tables: dict
    shapes: dict
    read: Callable[[str], np.ndarray]


def open_model(kind: Kind, folder) -> OpenModel:
    """Opens a model without reading its parameters. Raises UserError naming the file and the tensors on anything that
    does not fit."""
    folder = epath.Path(folder)
    config, found = read_config(kind, folder)
    stored = _stored_tensors(folder)
    present = {name: tensor.shape for name, tensor in stored.items()}
    read = lambda name: stored[name].read()  # noqa: E731
    tables = _take_rope_tables(config, present, read, folder) if kind is DIT else {}
    shapes = Functional(kind.make, config).shapes()
    names.check_tensors(kind.names, shapes, config, present, str(folder))
    return OpenModel(config, found, tables, shapes, read)


def load(kind: Kind, folder) -> HFModel:
    """Reads a whole model. Errors as in `open_model`."""
    opened = open_model(kind, folder)
    params = names.as_tree(names.from_hf(kind.names, opened.shapes, opened.read))
    return HFModel(opened.config, params, opened.json, opened.tables)


def _take_rope_tables(config: DiTConfig, present: dict, read: Callable, folder) -> dict[str, np.ndarray]:
    """Takes the rotary tables out of `present`; they are constants of the model, so another value is refused."""
    expected, found = rope_frequencies(config.rope_dim, ROPE_THETA), {}
    for name in [ROPE_NAME.format(i=i) for i in range(config.num_layers)]:
        if name in present:
            del present[name]
            table = found[name] = read(name)
            rtol = 1e-2 if table.itemsize < 4 else 1e-5
            if table.shape != expected.shape or not np.allclose(table.astype(np.float32), expected, rtol, atol=0):
                raise UserError(f"{folder}: {name} is not the rotary table of theta {ROPE_THETA:g}, the only one known")
    return found


def as_lists(tables: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """float32 rotary tables that differ from ours in some bit, for a JSON file; others are ours to write."""
    return {name: table.tolist() for name, table in tables.items() if table.dtype == np.float32
            and table.tobytes() != rope_frequencies(2 * len(table), ROPE_THETA).tobytes()}  # fmt: skip


def as_tables(lists: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """What `as_lists` was given, as far as it kept it."""
    return {name: np.asarray(table, np.float32) for name, table in lists.items()}


def config_json(kind: Kind, config, dtype: str, found: dict | None = None, inert: dict | None = None) -> dict:
    """config.json of an export; `found`, the config.json the model was read from, passes its inert keys on; `inert`:
    values of these that come before both."""
    passed_on = {k: v for k, v in (found or {}).items() if k in (*kind.inert, *_ENVELOPE)}
    own = {"model_type": kind.model_type, "architectures": [kind.architecture], **kind.fixed, **kind.inert}
    derived = {key: of(config) for key, of in kind.derived.items()}
    return own | passed_on | (inert or {}) | dataclasses.asdict(config) | derived | {"dtype": dtype}


def tensors(kind: Kind, config, params: dict, tables: dict | None = None):
    """Yields (HF name, array) of everything the released file holds, one tensor at a time; `tables`: HFModel.tables of
    the model it was read from, if any."""
    yield from names.to_hf(kind.names, params, config)
    if kind is DIT:
        own = rope_frequencies(config.rope_dim, ROPE_THETA)
        for name in [ROPE_NAME.format(i=i) for i in range(config.num_layers)]:
            yield name, (tables or {}).get(name, own)


def specs(kind: Kind, config, dtype: str) -> dict[str, shards.Spec]:
    """HF name -> shape and dtype of everything the released file holds. The rotary tables stay float32: rounded, they
    would turn far positions by other angles."""
    shapes = names.expected_shapes(kind.names, Functional(kind.make, config).shapes(), config)
    found = {name: shards.Spec(tuple(shape), dtype) for name, shape in shapes.items()}
    if kind is DIT:
        for i in range(config.num_layers):
            found[ROPE_NAME.format(i=i)] = shards.Spec((config.rope_dim // 2,), "float32")
    return found


def save(
    kind: Kind, config, params: dict, folder, *, dtype="float32", found: dict | None = None, tables: dict | None = None,
    auto_map: dict | None = None, inert: dict | None = None, shard_bytes: int = shards.SHARD_BYTES,
) -> dict[str, str]:  # fmt: skip
    """Writes config.json and the weights into `folder`, which must not exist.

    params: our tree, of anything that numpy reads (TensorStore arrays are read one layer at a time). `found` and
    `tables`: `json` and `tables` of the model it was read from, if any; `inert` as in `config_json`. Returns the sha256
    of each tensor.
    """
    folder = epath.Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists; remove it or name another folder")
    folder.mkdir(parents=True)
    written = config_json(kind, config, dtype, found, inert) | ({"auto_map": auto_map} if auto_map else {})
    (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    arrays = tensors(kind, config, params, tables)
    return shards.write(folder, specs(kind, config, dtype), arrays, shard_bytes)
