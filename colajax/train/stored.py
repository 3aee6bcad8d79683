"""Checkpoints opened array by array, for models that do not fit in memory beside their copies.

An opened array is a TensorStore: nothing is read before it is indexed and given to numpy, nothing else is written than
what is assigned.
"""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from colajax.errors import UserError
from colajax.files import absolute, in_bucket
from colajax.train.checkpoint import FOLDER, checkpoint_step, reading, step_folder, whole_step
from colajax.train.state import TrainState

ORBAX = "0.12.8"  # whose layout of a checkpoint this file knows

# A chunk may be a stack of small layers: it is kept, decoded, while they are taken out one after another.
_CACHE = tensorstore.Context({"cache_pool": {"total_bytes_limit": 256 * 2**20}})
_NO_CACHE = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})


def open_arrays(workdir, step: int | None = None, *, part: str = "params", write: bool = False) -> tuple[int, dict]:
    """One part of the TrainState in a run's checkpoint, as a tree of opened arrays, with its step (the latest by
    default). Errors as in `checkpoint.whole_step`; write: its digests are not compared, and to be written anew."""
    step = checkpoint_step(workdir, step) if write else whole_step(workdir, step)
    state = absolute(step_folder(workdir, step)) / "state"
    base = f"{state}/" if in_bucket(state) else {"driver": "file", "path": f"{state}/"}
    driver, paths = _layout(state)
    tree: dict = {}
    for keys in paths:
        if keys[0] != part:
            continue
        kvstore = {"driver": "ocdbt", "base": base, "path": ".".join(keys) + "/"}
        with reading(workdir, step):
            array = _open({"driver": driver, "kvstore": kvstore}, write, _NO_CACHE)
            if "blocks" in keys and not write and array.chunk_layout.read_chunk.shape[0] > 1:
                array = _open({"driver": driver, "kvstore": kvstore}, write, _CACHE)
        node = tree
        for key in keys[1:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = array
    return step, tree


def _layout(state: epath.Path) -> tuple[str, list[list[str]]]:
    """The TensorStore driver and the key paths of the arrays in a checkpoint's `state`, from the file in which Orbax
    notes them for itself: it promises nothing of it, so that what it was not seen to be is refused."""
    file = state / "_METADATA"
    try:
        metadata = json.loads(file.read_text())
        if not metadata["use_ocdbt"]:
            raise ValueError("arrays that are not in OCDBT")
        entries = metadata["tree_metadata"].values()
        stored = [entry for entry in entries if not entry["value_metadata"]["skip_deserialize"]]
        paths = [[key["key"] for key in entry["key_metadata"]] for entry in stored]
        return "zarr3" if metadata["use_zarr3"] else "zarr", paths
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not as orbax-checkpoint {ORBAX} writes it ({error!r}); copy the checkpoint again, or, if it was "
            f"saved with another version (this is {ocp.__version__}), use the one that this was tested with"
        ) from None


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
