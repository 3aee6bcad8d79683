"""Budgets of a run: EFLOPs of the compute axis at which it keeps a checkpoint for good and is evaluated."""

import math
from collections.abc import Callable

from etils import epath

from colajax.errors import UserError
from colajax.train.checkpoint import step_folder
from colajax.train.config import changed


def budget_steps(config, stage) -> tuple[int, ...]:
    """The first step that reaches each of config.budgets. Raises UserError on what are no budgets, and on one that the
    run does not come to."""
    budgets = config.budgets
    numbers = all(type(budget) in (int, float) and 0 < budget < math.inf for budget in budgets)
    if not numbers or list(budgets) != sorted(set(budgets)):
        raise UserError(f"config.budgets is {budgets!r}: expected EFLOPs that grow, such as (77.86, 116.78)")
    steps = tuple(stage.step_of(budget, config.batch_size) for budget in budgets)
    if steps and steps[-1] > config.total_steps > 0:
        raise UserError(
            f"config.budgets: {budgets[-1]:g} EFLOPs are step {steps[-1]:,}, beyond total_steps "
            f"({config.total_steps:,}); raise it, or set it to 0: the step of the last budget"
        )
    return steps


def with_total_steps(config, make_stage: Callable):
    """The configuration; where it gives EFLOPs in place of steps (total_steps 0), with the step of its last budget.
    make_stage(config, pad_id, eos_id) -> Stage. Raises UserError as `budget_steps` does."""
    if config.total_steps or not config.budgets:
        return config
    return changed(config, total_steps=budget_steps(config, make_stage(config, 0, 0))[-1])


def check_kept(workdir: epath.Path, config, steps: tuple[int, ...], start: int) -> None:
    """Raises UserError on a budget that the run in `workdir`, at step `start`, has passed without keeping its
    checkpoint."""
    for budget, step in zip(config.budgets, steps, strict=True):
        if step < start and not (step_folder(workdir, step) / "state").exists():
            raise UserError(
                f"config.budgets: {budget:g} EFLOPs are step {step:,}, of which the run in {workdir}, at step "
                f"{start:,}, has kept no checkpoint; leave it out"
            )
