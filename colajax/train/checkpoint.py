"""Orbax checkpoints of a run: saved in the background; the latest, every keep_every-th and those of budgets kept; read
only where every file is as it was written (`digests`)."""

import contextlib
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath

from colajax.errors import TryAgain, UserError, refusal_of, warn
from colajax.files import absolute, read_json
from colajax.parallel.agreement import from_first, share_errors
from colajax.train.digests import METADATA, damage_of, has_digests, write_digests
from colajax.train.state import TrainState

# Of a save that fails asyncio and Orbax log every task, with its traceback, in hundreds of lines. The exception is
# raised too, and said here in one.
for _logger in map(logging.getLogger, ("asyncio", "absl")):
    _logger.addFilter(lambda record: not record.exc_info)


def _without_closed_loops(unraisable, before=sys.unraisablehook) -> None:
    """TensorStore, of what it was still to tell a save that has failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        before(unraisable)


sys.unraisablehook = _without_closed_loops

FOLDER = "checkpoints"
LATEST = 2  # checkpoints that are kept whatever their step
SMALL_LAYER = 4 * 2**20  # bytes; smaller ones are stored together, as small files are slow
SMALL_SLICE = 2**20  # bytes; devices that hold the same array share the writing, unless a share would be smaller


def step_folder(workdir, step: int) -> epath.Path:
    """Where the checkpoint of a step lies."""
    return epath.Path(workdir) / FOLDER / str(step)


def _as_tree(state: TrainState) -> dict:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state, "frozen": state.frozen}


def _layer_by_layer(path, array: jax.Array) -> ocp.SaveArgs:
    """Stacked layers are stored one by one: whoever reads a layer of a large model reads no more than that."""
    if "blocks" not in [getattr(key, "key", None) for key in path]:
        return ocp.SaveArgs()
    shard = array.sharding.shard_shape(array.shape)
    layer = math.prod(shard[1:]) * array.itemsize
    return ocp.SaveArgs(shard_axes=(0,), chunk_byte_size=max(layer, SMALL_LAYER))


class _Chosen(ocp.checkpoint_managers.PreservationPolicy):
    """The checkpoints of a set of steps that grows."""

    def __init__(self, steps: set[int]):
        self._steps = steps

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [checkpoint.step in self._steps for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints under a workdir. A step is saved whole, with its digests, or not at all: Orbax gives what is
    complete its name or a mark, and removes older ones only then."""

    def __init__(self, workdir, *, keep_every: int, budgets: tuple[int, ...] = (), kept: Iterable[int] = ()):
        """keep_every, budgets: steps whose checkpoints are kept for good; kept: those of `keep` in the run so far."""
        self._workdir, self._kept = workdir, set(kept)
        self._newest = 0  # step of the checkpoint that was begun or restored last
        self._lost = False  # whether the last one could not be saved
        self._before_it_commits: Callable[[], object] = lambda: None
        # Each share of another shape is a small program to compile, at the first save.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SMALL_SLICE)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(LATEST), policies.EveryNSteps(keep_every), policies.CustomSteps(budgets),
                _Chosen(self._kept)]  # fmt: skip
        self._manager = ocp.CheckpointManager(
            absolute(workdir) / FOLDER,
            item_handlers={"state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry)},
            options=ocp.CheckpointManagerOptions(
                # The loop decides when to save (intervals, the last step, a stop signal).
                save_decision_policy=policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(kept),
                lightweight_initialize=True,  # or it reads a file of every checkpoint that is kept
                async_options=ocp.AsyncOptions(post_finalization_callback=self._finish),
            ),
        )

    def _finish(self) -> None:
        """Called in the background, in the first process, when all has been written; on local disk the folder has not
        got its name yet."""
        self._before_it_commits()
        self._manager._non_blocking_metadata_store.wait_until_finished()  # a thread that nothing has waited for yet
        folders = (absolute(self._workdir) / FOLDER).iterdir()
        write_digests(next(path for path in folders if path.name.partition(".")[0] == str(self._newest)))

    def commit_after(self, wait: Callable[[], object]) -> None:
        """wait: called in the background, in the first process, before a checkpoint gets its digests and its name."""
        self._before_it_commits = wait

    def save(self, state: TrainState, facts: dict) -> None:
        """Starts saving in the background; the state's arrays are copied before this returns. A step that is there
        already is left as it is. What cannot be saved, as on a full disk, is said, here or at the next save, and costs
        no more than itself. facts: JSON values that the checkpoint is to say of itself (Orbax's custom_metadata)."""
        step = int(state.step)
        self.wait()  # the one before has its own number
        if step not in self._manager.all_steps():
            tree = _as_tree(state)
            by_layer = jax.tree_util.tree_map_with_path(_layer_by_layer, tree)
            arguments = ocp.args.Composite(state=ocp.args.PyTreeSave(tree, save_args=by_layer))
            self._newest, self._lost = step, False
            self._try(lambda: self._manager.save(step, args=arguments, custom_metadata=facts))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, whatever mesh it was saved on, laid out as `like` (see `state.abstract_state`)."""
        self._newest = step
        with reading(self._workdir, step):
            restored = self._manager.restore(step, args=ocp.args.Composite(state=_restore(_as_tree(like))))
        return TrainState(**restored["state"])

    def keep(self, step: int) -> None:
        """The checkpoint of this step is kept for good; to be called before it is saved, or another after it."""
        self._kept.add(step)

    def keep_last(self) -> None:
        """That of the one saved last, if there is one."""
        if self._newest:
            self.keep(self._newest)

    def facts(self) -> dict:
        """What a checkpoint has to say of those that are kept."""
        return {"kept": sorted(self._kept)} if self._kept else {}

    @property
    def saving(self) -> bool:
        """Whether one is being saved in the background."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Until what was begun is on disk, or cannot be."""
        self._try(self._manager.wait_until_finished)

    def _try(self, saving: Callable[[], None]) -> None:
        """A part of a save, in every process; where it fails in one, that is said, and what there is of it removed."""

        def refused():
            try:
                saving()
            except Exception as error:
                if not (refusal_of(error) or _of_storage(error)):
                    raise
                raise refusal_of(error) or UserError(_said(error)) from None

        try:
            share_errors(refused)
        except UserError as error:
            self._lost, reason = True, str(error)
            from_first(lambda: self._clear(reason))
            self._manager.reload()  # or it takes one for removed that was to be when this one is there

    def _clear(self, reason: str) -> None:
        latest = latest_step(self._workdir)
        kept = "there is none" if latest is None else f"the last one is of step {latest}"
        warn(f"{step_folder(self._workdir, self._newest)}: not saved ({reason}); {kept}")
        for path in (absolute(self._workdir) / FOLDER).iterdir():
            if path.name.partition(".")[0] == str(self._newest) and not _is_whole(path):
                with contextlib.suppress(OSError):
                    path.rmtree()

    def reload(self) -> None:
        """To be called after checkpoints were moved."""
        self._manager.reload()

    def close(self) -> None:
        """Raises TryAgain where the last checkpoint could not be saved."""
        self.wait()
        self._manager.close()
        if self._lost:
            raise TryAgain(
                f"{self._workdir}: the checkpoint of step {self._newest} could not be saved; make room, and the same "
                f"command goes on from the last one"
            )


def latest_step(workdir) -> int | None:
    """The last whole checkpoint of a run, or None where there is none yet."""
    return next(whole_steps(workdir), None)


def facts_of(workdir, step: int) -> dict:
    """What the checkpoint of `step` says of itself: see `Checkpoints.save`."""
    return read_json(step_folder(workdir, step) / METADATA).get("custom_metadata") or {}


def previous_step(workdir, step: int) -> int | None:
    """The last whole checkpoint of a run before that of `step`, or None where there is none."""
    return next((other for other in whole_steps(workdir) if other < step), None)


def damage(workdir, step: int) -> str | None:
    """What is wrong with a checkpoint, or None; one that nothing can be said of is taken, and that is said."""
    folder = step_folder(workdir, step)
    if has_digests(folder):
        return damage_of(folder)
    if not (folder / "state").is_dir():
        return "state is missing"
    warn(f"{folder}: without digests, so that damage cannot be told")
    return None


def whole_steps(workdir) -> Iterator[int]:
    """The newest first: in a bucket each is asked for by requests of its own."""
    folder = epath.Path(workdir) / FOLDER
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.exists() else []
    return (step for step in sorted(steps, reverse=True) if _is_whole(step_folder(workdir, step)))


def _is_whole(path: epath.Path) -> bool:
    return path.is_dir() and ocp.utils.is_checkpoint_finalized(path)


def checkpoint_step(workdir, step: int | None = None) -> int:
    """`step`, or the latest by default. Raises UserError where the run has no such checkpoint."""
    latest = latest_step(workdir)
    if latest is None:
        raise UserError(f"{workdir}: no checkpoint under {FOLDER}/; let the training save one first")
    if step is not None and not _is_whole(step_folder(workdir, step)):
        raise UserError(f"{workdir}: no checkpoint of step {step}; the latest is {latest}")
    return latest if step is None else step


def whole_step(workdir, step: int | None = None) -> int:
    """As `checkpoint_step`, of a checkpoint that is as it was written. Raises UserError on one that is damaged too."""
    step = checkpoint_step(workdir, step)
    if reason := damage(workdir, step):
        raise _damaged(workdir, step, reason)
    return step


@contextlib.contextmanager
def reading(workdir, step: int) -> Iterator[None]:
    """Around what reads a checkpoint: whatever Orbax and TensorStore raise on one that is damaged becomes a UserError
    that names its folder and the next older one."""
    try:
        yield
    except Exception as error:
        if refusal_of(error) or not _of_storage(error):
            raise
        raise _damaged(workdir, step, _said(error)) from None


def _said(error: Exception) -> str:
    """What TensorStore says, but for the arrays it says it of."""
    reason = " ".join(str(error).partition("[tensorstore_spec")[0].split())[:300]
    return f"{type(error).__name__}: {reason}"


def _damaged(workdir, step: int, reason: str) -> UserError:
    older = previous_step(workdir, step)
    instead = "copy it again" if older is None else f"remove it to go on from the next older one, {older}"
    return UserError(f"{step_folder(workdir, step)}: damaged ({reason}); {instead}")


def _of_storage(error: Exception) -> bool:
    """Their exceptions have no class in common: TensorStore's are told by what they say, Orbax's by where they rise."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    said = re.search("tensorstore|OCDBT|Error (reading|opening)", str(error))
    return bool(said) or any("/orbax/" in file.replace("\\", "/") for file in files)


def _restore(target: dict, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    """target: ShapeDtypeStructs with shardings. What an import wrote, from numpy, comes back as they say too."""
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    return ocp.args.PyTreeRestore(item=target, restore_args=arguments, partial_restore=partial)


def read_params(workdir, step: int | None = None, *, like: dict) -> tuple[int, dict]:
    """The parameters {group: tree} of a run's checkpoint, with its step (the latest by default); like: the same tree,
    or some groups of it, of ShapeDtypeStructs with shardings. Every process calls this alike."""
    step = from_first(lambda: whole_step(workdir, step))
    return step, _read(workdir, step, _restore({"params": like}, partial=True))["params"]


def read_state(workdir, step: int, like: TrainState) -> TrainState:
    """All of a run's checkpoint, laid out as `like`. Every process calls this alike."""
    step = from_first(lambda: whole_step(workdir, step))
    return TrainState(**_read(workdir, step, _restore(_as_tree(like))))


def _read(workdir, step: int, arguments: ocp.args.PyTreeRestore) -> dict:
    folder = absolute(workdir) / FOLDER
    options = ocp.CheckpointManagerOptions(create=False, lightweight_initialize=True)
    handlers = {"state": ocp.PyTreeCheckpointHandler()}
    with reading(workdir, step), ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        return manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
