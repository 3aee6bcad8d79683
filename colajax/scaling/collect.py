"""What the runs of a ladder have come to, from their workdirs alone: config.json, metrics.jsonl and
tasks/STEP/tasks.json."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from etils import epath

from colajax.errors import UserError
from colajax.evals.families import FAMILIES
from colajax.evals.tasks.report import read_report, reports_of
from colajax.train.config import OPERATIONAL, flatten
from colajax.train.kept import run_config
from colajax.train.metrics import read_lines

COST = ("tokens", "eflops", "exact_eflops")  # of a line of metrics.jsonl


class Point(NamedTuple):
    """One task (or "mean") at one checkpoint."""

    label: str  # what its curve is of: a family, or a variant
    run: str
    seed: int
    task: str
    step: int
    tokens: int
    eflops: float
    exact_eflops: float
    accuracy: float
    low: float
    high: float
    count: int


class Collected(NamedTuple):
    points: list[Point]
    stage_one: dict[str, float]  # label -> exact EFLOPs of the stage 1 run that each of its runs began with
    settings: dict[str, dict]  # run -> what its evaluations were done with


def collect(workdirs: Iterable[epath.PathLike], labels: Mapping[str, str] | None = None) -> Collected:
    """All runs that have been evaluated; labels: of runs by name, in place of their families'. Raises UserError on runs
    that cannot be compared, and where there is none."""
    points, stage_one, settings, facts, alike = [], {}, {}, {}, {}
    evaluations = {}  # file -> (label, settings)
    for workdir in map(epath.Path, workdirs):
        config = run_config(workdir)
        if config["stage"] not in FAMILIES:
            continue
        label = (labels or {}).get(workdir.name, FAMILIES[config["stage"]])
        reports = [(step, file, read_report(file)) for step, file in reports_of(workdir)]
        if not reports:
            continue
        _check_alike(*alike.setdefault(label, (workdir, config)), workdir, config)
        points += _points(workdir, config, label, reports)
        facts[str(workdir)] = _facts(config, points[-1])
        evaluations |= {file: (label, report["settings"]) for _, file, report in reports}
        settings[workdir.name] = reports[-1][-1]["settings"]
        if (exact := _stage_one(config)) is not None:
            stage_one[label] = exact
    if not points:
        raise UserError("no run with tasks/STEP/tasks.json among the workdirs; evaluate their checkpoints first")
    _check_comparable(facts)
    _check_evaluations(evaluations)
    return Collected(points, stage_one, settings)


def _points(workdir: epath.Path, config: dict, label: str, reports: list[tuple]) -> Iterator[Point]:
    """Of one run, step by step; reports: (step, file, content) of its evaluations."""
    ledger = {line["step"]: line for line in read_lines(workdir / "metrics.jsonl") if line.keys() >= set(COST)}
    for step, file, report in reports:
        if step not in ledger:
            raise UserError(f"{workdir / 'metrics.jsonl'}: no line of step {step} with exact_eflops; {file} is of it")
        cost = [ledger[step][name] for name in COST]
        if not all(type(value) in (int, float) and 0 < value < math.inf for value in cost):
            raise UserError(f"{workdir / 'metrics.jsonl'}: damaged; expected numbers of step {step}: {', '.join(COST)}")
        for task, score in (*report["tasks"].items(), ("mean", report["mean"])):
            values = [score[name] for name in ("accuracy", "low", "high", "count")]
            yield Point(label, workdir.name, config["seed"], task, step, *cost, *values)


def _facts(config: dict, point: Point) -> dict:
    """What has to be the same of all runs, by what it is called."""
    tokens = config["batch_size"] * config["sequence_length"]
    return {
        "tokens": f"{tokens:,} a step, {point.tokens / point.eflops:.4g} an EFLOP",
        "tokenizer": config["facts"].get("tokenizer"),
        "records": config["facts"].get("records"),
    }


def _check_comparable(facts: dict[str, dict]) -> None:
    (first, expected), *others = facts.items()
    for workdir, found in others:
        for name in expected:
            if found[name] != expected[name]:
                raise UserError(
                    f"{workdir}: the runs disagree in {name}: {found[name]}, but {expected[name]} in {first}; "
                    f"a ladder's runs see the same tokens of the same tokenizer"
                )


def _check_evaluations(evaluations: Mapping[epath.Path, tuple[str, dict]]) -> None:
    """Raises UserError unless all have the same records and prompts, and those of one curve the same sampling."""
    firsts = {}
    for file, (label, settings) in evaluations.items():
        for part, of in (("tasks", None), ("sampler", label)):
            found = flatten({part: settings.get(part)})
            first, expected = firsts.setdefault((part, of), (file, found))
            for key in sorted(found.keys() | expected.keys()):
                if found.get(key) != expected.get(key):
                    raise UserError(
                        f"{file}: {key} is {found.get(key)}, but {expected.get(key)} in {first}; evaluate all runs "
                        "with the same tasks, prompts and --limit, and those of one curve with the same sampling"
                    )


def _check_alike(first: epath.Path, expected: dict, workdir: epath.Path, config: dict) -> None:
    """Raises UserError on two runs of one curve that are not the same but for their seed."""
    theirs, ours = _computed(expected), _computed(config)
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            raise UserError(
                f"{workdir}: {key} is {ours.get(key)}, but {theirs.get(key)} in {first}; runs of one curve differ in "
                "their seed alone; name the --ladder whose members they are, or take one of them out"
            )


def _computed(config: dict) -> dict:
    """What a run computes, {"a.b": value}, but for its seed and how far it goes on a schedule that ends elsewhere."""
    apart = {"seed", *OPERATIONAL} | ({"total_steps"} if config["optimizer"]["decay_steps"] else set())
    return {key: value for key, value in flatten(config).items() if key not in apart and not key.startswith("facts.")}


def _stage_one(config: dict) -> float | None:
    """Exact EFLOPs of the stage 1 run that a run began with; None where there is none, or it is not there any more."""
    begun, source = config["facts"].get("init"), config.get("init_from")
    if not begun or not source:
        return None
    lines = read_lines(epath.Path(source) / "metrics.jsonl")
    return next((x["exact_eflops"] for x in lines if x["step"] == begun["step"] and "exact_eflops" in x), None)
