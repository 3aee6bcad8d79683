"""Checkpoints that a run is not to go on from are moved aside, not deleted."""

import itertools

from etils import epath

from colajax.errors import UserError, warn
from colajax.files import files_under, in_bucket, move
from colajax.train.checkpoint import FOLDER, damage, step_folder, whole_steps

ASIDE = "damaged"  # folder of a workdir for checkpoints that are not what was written


def set_later_aside(workdir: epath.Path, after: int) -> None:
    """Moves the checkpoints of later steps to WORKDIR/damaged, and says so; to be called in one process."""
    for step in [step for step in whole_steps(workdir) if step > after]:
        warn(f"{step_folder(workdir, step)}: moved to {_move_aside(workdir, step)}")


def set_damaged_aside(workdir: epath.Path) -> None:
    """Moves checkpoints of a run that are not what was written to WORKDIR/damaged, from the latest on to the first one
    that is, and says so; to be called in one process. Raises UserError, and moves none, where all are damaged."""
    damaged, step = {}, None
    for step in whole_steps(workdir):
        if (reason := damage(workdir, step)) is None:
            break
        damaged[step] = reason
    if step in damaged:
        said = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise UserError(f"{workdir / FOLDER}: every checkpoint is damaged ({said}); copy one again")
    for old, reason in damaged.items():
        aside = _move_aside(workdir, old)
        warn(f"{step_folder(workdir, old)}: damaged ({reason}); moved to {aside}")


def _move_aside(workdir: epath.Path, step: int) -> epath.Path:
    """Gives a checkpoint's files a folder of their own in WORKDIR/damaged: STEP-0, or the next that is not taken."""
    source, parent = step_folder(workdir, step), workdir / ASIDE
    target = next(place for n in itertools.count() if not (place := parent / f"{step}-{n}").exists())
    target.mkdir(parents=True)
    for file in files_under(source):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        move(file, place)
    if not in_bucket(source):  # where there are no folders
        source.rmtree()
    return target
