"""Orbax checkpoints of a run: saved in the background, the latest and every keep_every-th kept."""

import math

import jax
import orbax.checkpoint as ocp
from etils import epath

from colajax.errors import UserError
from colajax.files import absolute
from colajax.train.state import TrainState

FOLDER = "checkpoints"
LATEST = 2  # checkpoints that are kept whatever their step
SMALL_LAYER = 4 * 2**20  # bytes; smaller ones are stored together, as small files are slow
SMALL_SLICE = 2**20  # bytes; devices that hold the same array share the writing, unless a share would be smaller


def _as_tree(state: TrainState) -> dict:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state, "frozen": state.frozen}


def _layer_by_layer(path, array: jax.Array) -> ocp.SaveArgs:
    """Stacked layers are stored one by one: whoever reads a layer of a large model reads no more than that."""
    if "blocks" not in [getattr(key, "key", None) for key in path]:
        return ocp.SaveArgs()
    shard = array.sharding.shard_shape(array.shape)
    layer = math.prod(shard[1:]) * array.itemsize
    return ocp.SaveArgs(shard_axes=(0,), chunk_byte_size=max(layer, SMALL_LAYER))


class Checkpoints:
    """The checkpoints under a workdir. A step is saved whole or not at all: Orbax marks what is complete."""

    def __init__(self, workdir, *, keep_every: int):
        # Each share of another shape is a small program to compile, at the first save.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SMALL_SLICE)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(LATEST), policies.EveryNSteps(keep_every)]
        self._manager = ocp.CheckpointManager(
            absolute(workdir) / FOLDER,
            item_handlers={"state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry)},
            options=ocp.CheckpointManagerOptions(
                # The loop decides when to save (intervals, the last step, a stop signal).
                save_decision_policy=policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(kept),
                lightweight_initialize=True,  # or it reads a file of every checkpoint that is kept
            ),
        )

    def save(self, state: TrainState) -> None:
        """Starts saving in the background; the state's arrays are copied before this returns. A step that is there
        already is left as it is."""
        step = int(state.step)
        if step not in self._manager.all_steps():
            tree = _as_tree(state)
            by_layer = jax.tree_util.tree_map_with_path(_layer_by_layer, tree)
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree, save_args=by_layer)))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, whatever mesh it was saved on, laid out as `like` (see `state.abstract_state`)."""
        restored = self._manager.restore(step, args=ocp.args.Composite(state=_restore(_as_tree(like))))
        return TrainState(**restored["state"])

    def close(self) -> None:
        """Waits until everything that was begun is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def latest_step(workdir) -> int | None:
    """The last whole checkpoint of a run, or None where there is none yet."""
    folder = epath.Path(workdir) / FOLDER
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    # The newest first: in a bucket each is asked for by requests of its own.
    whole = (step for step in sorted(steps, reverse=True) if _is_whole(folder / str(step)))
    return next(whole, None)


def _is_whole(path: epath.Path) -> bool:
    return path.is_dir() and ocp.utils.is_checkpoint_finalized(path)


def checkpoint_step(workdir, step: int | None = None) -> int:
    """`step`, or the latest by default. Raises UserError where the run has no such checkpoint."""
    latest = latest_step(workdir)
    if latest is None:
        raise UserError(f"{workdir}: no checkpoint under {FOLDER}/; let the training save one first")
    if step is not None and not (epath.Path(workdir) / FOLDER / str(step) / "state").exists():
        raise UserError(f"{workdir}: no checkpoint of step {step}; the latest is {latest}")
    return latest if step is None else step


def _restore(target: dict, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    """target: ShapeDtypeStructs with shardings. What an import wrote, from numpy, comes back as they say too."""
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    return ocp.args.PyTreeRestore(item=target, restore_args=arguments, partial_restore=partial)


def read_params(workdir, step: int | None = None, *, like: dict) -> tuple[int, dict]:
    """The parameters {group: tree} of a run's checkpoint, with its step (the latest by default); like: the same tree,
    or some groups of it, of ShapeDtypeStructs with shardings."""
    step = checkpoint_step(workdir, step)
    folder = absolute(workdir) / FOLDER
    options = ocp.CheckpointManagerOptions(create=False, lightweight_initialize=True)
    handlers = {"state": ocp.PyTreeCheckpointHandler()}
    with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        arguments = ocp.args.Composite(state=_restore({"params": like}, partial=True))
        return step, manager.restore(step, args=arguments)["state"]["params"]
