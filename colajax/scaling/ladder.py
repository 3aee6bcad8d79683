"""A ladder: runs of several families and sizes that see the same tokens, in the same batches, by the same schedule.

One run a family, size and seed; at each budget on its way it keeps a checkpoint, and that is what is evaluated, as in
the paper.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from colajax.errors import UserError
from colajax.stages import stage_of
from colajax.train.budgets import budget_steps, with_total_steps
from colajax.train.config import load_config, load_module


class Member(NamedTuple):
    """A family at one size, or a variant of one."""

    config: str  # as --config has it, from the repository's root
    overrides: tuple[str, ...] = ()  # KEY=VALUE
    stage_one: "Member | None" = None  # the run that it begins with, once a seed; outside the budgets
    sampling: tuple[str, ...] = ()  # arguments of tools/evaluate.py


class Ladder(NamedTuple):
    budgets: tuple[float, ...]  # EFLOPs of the compute axis
    seeds: tuple[int, ...]
    shared: tuple[str, ...]  # KEY=VALUE of every run within the budgets
    sizes: Mapping[str, Mapping[str, Member]]  # size -> family, or what a variant is called -> member
    # What makes the records and the tasks: (what is there afterwards, command), of paths in the ladder's folder, "@".
    data: tuple[tuple[str, str], ...] = ()
    evaluation: tuple[str, ...] = ()  # arguments of tools/evaluate.py for all, "@" being the folder of the tasks
    best: str = ""  # the member that the paper finds best; the others are compared with it


class Run(NamedTuple):
    """One training of a ladder."""

    name: str
    label: str  # what the ladder calls the member
    member: Member
    folder: str  # of the ladder
    seed: int
    overrides: tuple[str, ...]  # all of them
    budgets: tuple[int, ...]  # steps; () for a stage 1
    total_steps: int
    sampling: tuple[str, ...] = ()  # arguments of tools/evaluate.py, "@" being the folder of the tasks
    stage_one: "Run | None" = None

    @property
    def workdir(self) -> str:
        return f"{self.folder}/runs/{self.name}"

    def config(self, root: Path) -> ConfigDict:
        """The configuration of the training; root: of the repository."""
        return _config(root, self.member, self.overrides)


def find_ladder(name: str, default: Path) -> Ladder:
    """The ladder of a name such as quick, in the file `default`, or FILE:quick. Raises UserError on one that is not
    there."""
    file, _, key = name.rpartition(":")
    path = Path(file) if file else default
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{path}: no such file of ladders; expected one such as configs/ladder.py")
    with load_module(path) as module:
        ladders = getattr(module, "LADDERS", {})
        if key not in ladders:
            expected = ", ".join(ladders) or "none"
            raise UserError(f"--ladder {name}: no ladder {key!r} in {path}; expected one of {expected}")
        return ladders[key]


def runs_of(ladder: Ladder, folder: str, root: Path, data: Mapping[str, str] | None = None) -> list[Run]:
    """The trainings, stage 1 runs before those that begin with them; data: other places of "records". Raises UserError
    where families do not see the same tokens at a budget."""
    records = f"records={(data or {}).get('records') or f'{folder}/records'}"
    shared = (f"budgets={ladder.budgets}", "total_steps=0", *ladder.shared, records)
    runs: list[Run] = []
    for size, members in ladder.sizes.items():
        plans = {label: _marks(root, member, shared) for label, member in members.items()}
        _check_matched(plans, ladder.budgets)
        for seed in ladder.seeds:
            for label, member in members.items():
                budgets, total_steps, _ = plans[label]
                begins, first = (), None
                if member.stage_one:
                    first = _stage_one(member.stage_one, size, folder, seed, records, root)
                    begins = (f"init_from={first.workdir}",)
                    if first not in runs:
                        runs.append(first)
                overrides = (*shared, *member.overrides, *begins, f"seed={seed}")
                sampling = (*ladder.evaluation, *member.sampling)
                name = f"{label}-{size}-{seed}"
                runs.append(Run(name, label, member, folder, seed, overrides, budgets, total_steps, sampling, first))
    _check_names(runs)
    return runs


def _stage_one(member: Member, size: str, folder: str, seed: int, records: str, root: Path) -> Run:
    """Named by its configuration: members that begin with the same one share it."""
    file, _, variant = member.config.rpartition("/")[2].partition(".py:")
    name = f"{variant if file == 'ablations' else file.removesuffix('.py')}-{size}-{seed}"
    overrides = (*member.overrides, records, f"seed={seed}")
    return Run(name, name, member, folder, seed, overrides, (), _config(root, member, overrides).total_steps)


def _check_names(runs: list[Run]) -> None:
    """Raises UserError where two runs would be one folder."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            raise UserError(f"the ladder has two runs called {run.name}; give one member another name")


def _config(root: Path, member: Member, overrides: tuple[str, ...]) -> ConfigDict:
    config = load_config(str(root / member.config), list(overrides))
    return with_total_steps(config, stage_of(config))


def _marks(root: Path, member: Member, shared: tuple[str, ...]) -> tuple[tuple[int, ...], int, int]:
    """(steps of the budgets, last step, tokens of a step)."""
    config = _config(root, member, (*shared, *member.overrides, *(("init_from=x",) if member.stage_one else ())))
    stage = stage_of(config)(config, 0, 0)
    return budget_steps(config, stage), config.total_steps, config.batch_size * config.sequence_length


def _check_matched(plans: Mapping[str, tuple], budgets: tuple[float, ...]) -> None:
    """Raises UserError unless the families come to the same tokens, in the same batches, at every budget."""
    (first, expected), *others = plans.items()
    for family, found in others:
        if found != expected:
            (steps, _, tokens), (their_steps, _, their_tokens) = expected, found
            raise UserError(
                f"the ladder's families disagree in tokens: at {budgets[-1]:g} EFLOPs {first} has seen "
                f"{steps[-1] * tokens:,} in batches of {tokens:,}, {family} {their_steps[-1] * their_tokens:,} of "
                f"{their_tokens:,}; give them the same batch_size, sequence_length and compute_params"
            )
