"""Checkpoints opened array by array, for models that do not fit in memory beside their copies.

An opened array is a TensorStore: nothing is read before it is indexed and given to numpy, nothing else is written than
what is assigned.
"""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from colajax.errors import UserError
from colajax.files import absolute
from colajax.train.checkpoint import FOLDER, checkpoint_step
from colajax.train.state import TrainState

# A chunk may be a stack of small layers: it is kept, decoded, while they are taken out one after another.
_CACHE = tensorstore.Context({"cache_pool": {"total_bytes_limit": 256 * 2**20}})
_NO_CACHE = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})


def open_arrays(workdir, step: int | None = None, *, part: str = "params", write: bool = False) -> tuple[int, dict]:
    """One part of the TrainState in a run's checkpoint, as a tree of opened arrays, with its step (the latest by
    default). Errors as in `checkpoint.checkpoint_step`."""
    step = checkpoint_step(workdir, step)
    state = absolute(workdir) / FOLDER / str(step) / "state"
    metadata = json.loads((state / "_METADATA").read_text())
    base = f"{state}/" if "://" in str(state) else {"driver": "file", "path": f"{state}/"}
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    tree: dict = {}
    for entry in metadata["tree_metadata"].values():
        keys = [key["key"] for key in entry["key_metadata"]]
        if keys[0] != part or entry["value_metadata"].get("skip_deserialize"):
            continue
        kvstore = {"driver": "ocdbt", "base": base, "path": ".".join(keys) + "/"}
        try:
            array = _open({"driver": driver, "kvstore": kvstore}, write, _NO_CACHE)
            if "blocks" in keys and not write and array.chunk_layout.read_chunk.shape[0] > 1:
                array = _open({"driver": driver, "kvstore": kvstore}, write, _CACHE)
        except ValueError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{state}: cannot open {'/'.join(keys)} ({reason}); copy the checkpoint again") from None
        node = tree
        for key in keys[1:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = array
    return step, tree


def _open(spec: dict, write: bool, context: tensorstore.Context) -> tensorstore.TensorStore:
    return tensorstore.open(spec, read=True, write=write, context=context, recheck_cached_data="open").result()


def create_zeros(workdir, shapes: TrainState) -> None:
    """Makes the checkpoint of step shapes.step in `workdir`, of zeros, in the form that the training loop reads;
    stacked layers are stored one by one. It takes no memory and, until written to, no disk.

    shapes: ShapeDtypeStructs but for `step`, an int. Write the parameters through `open_arrays`.
    """
    step = int(shapes.step)
    tree = {"params": shapes.params, "opt_state": shapes.opt_state, "frozen": shapes.frozen}
    tree = jax.tree.map(_zeros, tree) | {"step": np.asarray(step, np.int32)}
    by_layer = jax.tree_util.tree_map_with_path(
        lambda path, x: ocp.SaveArgs(shard_axes=(0,) if "blocks" in jax.tree_util.keystr(path) else ()), tree
    )
    numpy_handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, numpy_handler), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry)}
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    folder = absolute(workdir) / FOLDER
    with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree, save_args=by_layer)))


def _zeros(shape) -> np.ndarray:
    """A zero-stride stand-in of any size."""
    return np.broadcast_to(np.zeros((), shape.dtype), shape.shape)
