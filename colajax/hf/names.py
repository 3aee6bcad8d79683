"""The released tensor names, and those of transformers' LLaMA, as one table a model: (HF name, our path, how the array
is turned).

`{i}` in a name is the layer; our arrays of stacked layers carry that layer on their leading axis. A row whose path a
configuration does not have (a bias it leaves out) is passed over.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from colajax.errors import UserError


class Turn(NamedTuple):
    """How one array goes from the HF layout to ours and back: to_ours(array), to_hf(array, config of its model)."""

    to_ours: Callable
    to_hf: Callable


SAME = Turn(lambda a: a, lambda a, config: a)
# (out, in) -> (in, out)
KERNEL = Turn(lambda a: a.T, lambda a, config: a.T)
# Convolution (out, in, patch) -> a linear kernel over the tokens of a patch, (patch * in, out)
PATCH = Turn(
    lambda a: a.transpose(2, 1, 0).reshape(-1, a.shape[0]),
    lambda a, config: a.reshape(config.patch_size, -1, a.shape[1]).transpose(2, 1, 0),
)


def _linear(hf: str, ours: str) -> list[tuple[str, str, Turn]]:
    return [(f"{hf}.weight", f"{ours}/kernel", KERNEL), (f"{hf}.bias", f"{ours}/bias", SAME)]


def _norm(hf: str, ours: str) -> list[tuple[str, str, Turn]]:
    return [(f"{hf}.weight", f"{ours}/scale", SAME), (f"{hf}.bias", f"{ours}/bias", SAME)]


def _vae_blocks(side: str) -> list[tuple[str, str, Turn]]:
    hf, ours = f"{side}.blocks.{{i}}", f"{side}/blocks"
    return [
        *_norm(f"{hf}.norm_attn", f"{ours}/norm_attn"),
        *_linear(f"{hf}.qkv_proj", f"{ours}/qkv"),
        *_norm(f"{hf}.q_norm", f"{ours}/q_norm"),
        *_norm(f"{hf}.k_norm", f"{ours}/k_norm"),
        *_linear(f"{hf}.attn_out_proj", f"{ours}/out"),
        *_norm(f"{hf}.norm_ffn", f"{ours}/norm_ffn"),
        *_linear(f"{hf}.ffn_proj", f"{ours}/up"),
        *_linear(f"{hf}.ffn_out", f"{ours}/down"),
    ]


VAE_NAMES = [
    ("encoder.wte.weight", "encoder/embedding/embedding", SAME),
    ("encoder.patch_embedder.weight", "encoder/patch/kernel", PATCH),
    ("encoder.patch_embedder.bias", "encoder/patch/bias", SAME),
    *_vae_blocks("encoder"),
    *_linear("encoder.final_layer", "encoder/head"),
    *_linear("decoder.in_layer", "decoder/latent_in"),
    *_vae_blocks("decoder"),
    *_linear("decoder.unpatch_layer", "decoder/unpatch"),
    *_norm("decoder.final_norm", "decoder/norm"),
    *_linear("decoder.final_layer", "decoder/head"),
]

DIT_NAMES = [
    *_linear("txt_in.proj", "latent_in"),
    *_linear("emb_in.proj_in", "time/proj_in"),
    *_linear("emb_in.proj_hid", "time/proj_hid"),
    *_linear("emb_in.proj_out", "time/proj_out"),
    *_linear("blocks.{i}.msa.proj_qkv", "blocks/qkv"),
    *_linear("blocks.{i}.msa.proj_out", "blocks/out"),
    *_norm("blocks.{i}.msa.norm_q", "blocks/q_norm"),
    *_norm("blocks.{i}.msa.norm_k", "blocks/k_norm"),
    *_linear("blocks.{i}.mlp.proj_in", "blocks/up"),
    *_linear("blocks.{i}.mlp.proj_out", "blocks/down"),
    *_linear("blocks.{i}.ada.msa_in.1", "blocks/msa_in/linear"),
    *_linear("blocks.{i}.ada.msa_out.1", "blocks/msa_out/linear"),
    *_linear("blocks.{i}.ada.mlp_in.1", "blocks/mlp_in/linear"),
    *_linear("blocks.{i}.ada.mlp_out.1", "blocks/mlp_out/linear"),
    *_norm("txt_out_norm", "out_norm"),
    *_linear("txt_out_ada.out_in.1", "out_in/linear"),
    *_linear("txt_out.proj", "head"),
]

# transformers' LlamaForCausalLM; LLaDA's classes have the same names, and a row more in the embedding.
LLAMA_NAMES = [
    ("model.embed_tokens.weight", "embedding/embedding", SAME),
    ("model.layers.{i}.input_layernorm.weight", "blocks/norm_attn/scale", SAME),
    ("model.layers.{i}.self_attn.q_proj.weight", "blocks/query/kernel", KERNEL),
    ("model.layers.{i}.self_attn.k_proj.weight", "blocks/key/kernel", KERNEL),
    ("model.layers.{i}.self_attn.v_proj.weight", "blocks/value/kernel", KERNEL),
    ("model.layers.{i}.self_attn.o_proj.weight", "blocks/out/kernel", KERNEL),
    ("model.layers.{i}.post_attention_layernorm.weight", "blocks/norm_ffn/scale", SAME),
    ("model.layers.{i}.mlp.gate_proj.weight", "blocks/gate/kernel", KERNEL),
    ("model.layers.{i}.mlp.up_proj.weight", "blocks/up/kernel", KERNEL),
    ("model.layers.{i}.mlp.down_proj.weight", "blocks/down/kernel", KERNEL),
    ("model.norm.weight", "norm/scale", SAME),
    ("lm_head.weight", "head/kernel", KERNEL),
]


def at(tree: dict, path: str):
    """The value at "a/b/c" of nested dicts; None where there is none."""
    for key in path.split("/"):
        if key not in tree:
            return None
        tree = tree[key]
    return tree


def to_hf(names: list, params: dict, config) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (HF name, array) for every parameter, one at a time; stacked layers are taken apart."""
    for hf_name, path, turn in names:
        array = at(params, path)
        if array is None:
            continue
        if "{i}" in hf_name:
            for i in range(array.shape[0]):
                yield hf_name.format(i=i), np.ascontiguousarray(turn.to_hf(np.asarray(array[i]), config))
        else:
            yield hf_name, np.ascontiguousarray(turn.to_hf(np.asarray(array), config))


def expected_shapes(names: list, shapes: dict, config) -> dict[str, tuple[int, ...]]:
    """HF name -> HF shape of every parameter of a model whose own shapes are given."""
    found = {}
    for hf_name, path, turn in names:
        ours = at(shapes, path)
        if ours is None:
            continue
        layered = "{i}" in hf_name
        # A zero-stride stand-in has the shape and takes no memory.
        stand_in = np.broadcast_to(np.float32(0), ours.shape[1:] if layered else ours.shape)
        shape = turn.to_hf(stand_in, config).shape
        for i in range(ours.shape[0] if layered else 1):
            found[hf_name.format(i=i)] = shape
    return found


def check_tensors(names: list, shapes: dict, config, present: dict, where: str) -> None:
    """Raises UserError listing every missing, unexpected and wrongly shaped tensor by name.

    present: HF name -> shape of every tensor that is there.
    """
    wanted = expected_shapes(names, shapes, config)
    missing = sorted(set(wanted) - set(present))
    extra = sorted(set(present) - set(wanted))
    wrong = [f"{n} {tuple(present[n])} (expected {wanted[n]})" for n in sorted(wanted) if n in present
             and tuple(present[n]) != wanted[n]]  # fmt: skip
    problems = [f"{kind}: {', '.join(which)}" for kind, which in
                (("missing", missing), ("unexpected", extra), ("wrong shape", wrong)) if which]  # fmt: skip
    if problems:
        raise UserError(f"{where}: tensors do not fit its config.json; {'; '.join(problems)}")


def from_hf(
    names: list, shapes: dict, read: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Yields (our path, layer, array) of every parameter, float32, one HF tensor at a time; layer is None for what is
    not stacked. read: HF name -> array."""
    for hf_name, path, turn in names:
        ours = at(shapes, path)
        if ours is None:
            continue
        for layer in range(ours.shape[0]) if "{i}" in hf_name else (None,):
            array = _float32(read(hf_name if layer is None else hf_name.format(i=layer)))
            yield path, layer, np.ascontiguousarray(turn.to_ours(array))


def as_tree(parameters: Iterator[tuple[str, int | None, np.ndarray]]) -> dict:
    """What `from_hf` yields as one dict, stacked."""
    found: dict[str, list | np.ndarray] = {}
    for path, layer, array in parameters:
        if layer is None:
            found[path] = array
        else:
            found.setdefault(path, []).append(array)
    tree: dict = {}
    for path, arrays in found.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = np.stack(arrays) if isinstance(arrays, list) else arrays
    return tree


def _float32(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.float32 else array.astype(np.float32)
