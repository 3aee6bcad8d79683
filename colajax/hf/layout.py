"""The released checkpoint layout: a folder a model with config.json and model.safetensors (or numbered shards)."""

import dataclasses
import json
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from colajax.errors import UserError
from colajax.hf import names, shards
from colajax.models.config import DiTConfig, VAEConfig, from_mapping
from colajax.models.dit import ROPE_THETA, DiT
from colajax.models.layers import Functional, rope_frequencies
from colajax.models.text_vae import TextVAE

ROPE_NAME = "blocks.{i}.msa.rope.rope.freqs"


class Kind(NamedTuple):
    """One of the two models of the layout."""

    folder: str
    model_type: str
    architecture: str
    config_class: type
    names: list
    make: Callable
    fixed: dict  # keys that the model has one value for; another value is refused by name
    inert: dict  # keys that are kept and change nothing, with what an export of ours writes


VAE = Kind(
    "cola_vae", "cola_text_vae", "ColaTextVAEModel", VAEConfig, names.VAE_NAMES, TextVAE,
    fixed={"shared_heads_kv": 1, "layer_norm_type": "layer_norm", "dropout": 0.0, "attn_dropout": 0.0},
    inert={"use_emb": True, "causal": False, "init_fn": "normal", "init_std": 0.02, "init_cutoff_factor": 3},
)  # fmt: skip
DIT = Kind("cola_dit", "cola_dit", "ColaDiTModel", DiTConfig, names.DIT_NAMES, DiT, fixed={}, inert={})
# By parameter group of a run. A run of another architecture (the AR baseline: LlamaForCausalLM) is another row.
KINDS = {"vae": VAE, "dit": DIT}

# Written by other tools into any config.json; kept as found.
_ENVELOPE = ("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "auto_map")


class HFModel(NamedTuple):
    """A model read from the layout: its config, float32 parameters (numpy, our tree), config.json as found, and the
    rotary tables as found (name -> array), whose last bits hang on the machine that made them."""

    config: VAEConfig | DiTConfig
    params: dict
    json: dict
    tables: dict


def functional(kind: Kind, config, *, dtype=jnp.float32, remat="none") -> Functional:
    return Functional(lambda rngs: kind.make(config, dtype=dtype, remat=remat, rngs=rngs))


def read_config(kind: Kind, folder) -> tuple[VAEConfig | DiTConfig, dict]:
    """The model's config and the whole config.json. Raises UserError on a missing file, another model_type, an unknown
    key, or an option that the model does not have."""
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{path}: not found; expected the config.json of a {kind.model_type} checkpoint")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); expected a {kind.model_type} configuration") from None
    if found.get("model_type") != kind.model_type:
        raise UserError(f"{path}: model_type is {found.get('model_type')!r}: expected {kind.model_type!r}")
    for key, value in kind.fixed.items():
        if key in found and found[key] != value:
            raise UserError(f"{path}: {key} is {found[key]!r}: only {value!r} is supported")
    known = {k: v for k, v in found.items() if k not in (*kind.fixed, *kind.inert, *_ENVELOPE)}
    # The config class of the released VAE has its own default here, unlike the released checkpoint.
    known.setdefault("block_size", 4 if kind is VAE else DiTConfig.block_size)
    return from_mapping(kind.config_class, known, str(path)), found


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
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: no readable weight_map; expected a safetensors index") from None
    files = {file: shards.stored_in(folder / file) for file in files}
    for name, file in weight_map.items():
        if name not in files[file]:
            raise UserError(f"{folder / file}: tensor {name} is not in it, though the index says so")
    return {name: files[file][name] for name, file in weight_map.items()}


class OpenModel(NamedTuple):
    """A model of the layout, checked: its config, config.json as found, the rotary tables as found, the shapes of our
    parameters, and `read`, which fetches one tensor by its HF name."""

    config: VAEConfig | DiTConfig
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
    shapes = functional(kind, config).shapes()
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


def config_json(kind: Kind, config, dtype: str, found: dict | None = None) -> dict:
    """config.json of an export; `found`, the config.json the model was read from, passes its inert keys on."""
    passed_on = {k: v for k, v in (found or {}).items() if k in (*kind.inert, *_ENVELOPE)}
    own = {"model_type": kind.model_type, "architectures": [kind.architecture], **kind.fixed, **kind.inert}
    return own | passed_on | dataclasses.asdict(config) | {"dtype": dtype}


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
    shapes = names.expected_shapes(kind.names, functional(kind, config).shapes(), config)
    found = {name: shards.Spec(tuple(shape), dtype) for name, shape in shapes.items()}
    if kind is DIT:
        for i in range(config.num_layers):
            found[ROPE_NAME.format(i=i)] = shards.Spec((config.rope_dim // 2,), "float32")
    return found


def save(
    kind: Kind, config, params: dict, folder, *, dtype="float32", found: dict | None = None, tables: dict | None = None,
    auto_map: dict | None = None, shard_bytes: int = shards.SHARD_BYTES,
) -> dict[str, str]:  # fmt: skip
    """Writes config.json and the weights into `folder`, which must not exist.

    params: our tree, of anything that numpy reads (TensorStore arrays are read one layer at a time). `found` and
    `tables`: `json` and `tables` of the model it was read from, if any. Returns the sha256 of each tensor.
    """
    folder = epath.Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists; remove it or name another folder")
    folder.mkdir(parents=True)
    written = config_json(kind, config, dtype, found) | ({"auto_map": auto_map} if auto_map else {})
    (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    arrays = tensors(kind, config, params, tables)
    return shards.write(folder, specs(kind, config, dtype), arrays, shard_bytes)
