"""Answers the records of tasks with a model, scores them, and keeps what is needed to go on after any interruption.

Every process calls the sampler alike; the first one reads and writes. OUT holds settings.json, generations/TASK.jsonl
(batch by batch), and at the end tasks.json and tasks.csv. Records go through the sampler in the order of their prompts'
lengths, and a sample's randomness depends on its place among the task's records: neither batches nor interruptions
change an output.
"""

import functools
import json
import time
from typing import NamedTuple

import jax
from etils import epath

from colajax.errors import UserError
from colajax.evals.model import Model
from colajax.evals.tasks import report
from colajax.evals.tasks.data import TaskData
from colajax.evals.tasks.generations import Generations
from colajax.evals.tasks.outputs import Output, score_files
from colajax.evals.tasks.prompts import Template
from colajax.files import read_json, write_whole
from colajax.parallel.agreement import from_first, share_errors
from colajax.parallel.processes import is_first
from colajax.sampling.settings import SamplingSettings
from colajax.train.config import flatten
from colajax.train.provenance import commit, versions

NEW_TOKENS = 32
BETWEEN_LINES = 5.0  # seconds between two lines of progress


class _Work(NamedTuple):
    """A task as the sampler gets it: prompts, their tokens, and the order of the records, shortest prompt first."""

    data: TaskData
    prompts: list[str]
    tokens: list[list[int]]
    order: list[int]

    def cost(self, chosen: list[int]) -> int:
        """Tokens that go through the model."""
        return sum(len(self.tokens[i]) + NEW_TOKENS for i in chosen)


def run_tasks(
    model: Model, tasks: list[TaskData], templates: dict[str, Template], out: epath.Path, settings: SamplingSettings,
    *, batch_size: int, keep_decisions: bool = False,
) -> dict[str, report.Score]:  # fmt: skip
    """The scores of each task and their mean, which are also in OUT/tasks.json. Goes on where OUT has outputs already;
    raises UserError where they were made with other settings."""
    works = [_work(model, data, templates[data.task.name]) for data in tasks]
    facts = _settings(model, works, templates, settings)
    from_first(lambda: _keep_settings(out / "settings.json", facts))
    files = {work.data.task: out / "generations" / f"{work.data.task.name}.jsonl" for work in works}
    progress = _Progress(sum(work.cost(work.order) for work in works))
    for work in works:
        _generate(model, work, files[work.data.task], settings, batch_size, progress)
    found = from_first(lambda: _score(model, files, out, facts, keep_decisions))
    return {name: report.Score(*score) for name, score in found.items()}


def _work(model: Model, data: TaskData, template: Template) -> _Work:
    prompts = [template.fill(record) for record in data.records]
    tokens = [model.tokenizer.encode(prompt) for prompt in prompts]
    work = _Work(data, prompts, tokens, sorted(range(len(tokens)), key=lambda i: len(tokens[i])))
    longer = sum(len(t) + NEW_TOKENS > model.trained_length for t in tokens)
    if longer and is_first():
        print(f"{data.task.name}: {longer:,} of {len(tokens):,} prompts are, with the answer, longer than the "
              f"{model.trained_length:,} tokens of the model's training", flush=True)  # fmt: skip
    return work


def _settings(model: Model, works: list[_Work], templates: dict[str, Template], settings: SamplingSettings) -> dict:
    """All that the figures depend on."""
    of_tasks = {
        work.data.task.name: {
            "records": len(work.order), "data": work.data.digest, "prompt": templates[work.data.task.name].digest,
        }
        for work in works
    }  # fmt: skip
    sampler = {name: getattr(settings, name) for name in model.sampler.SETTINGS}
    program = {"commit": commit(), "versions": versions(), "device_kind": jax.devices()[0].device_kind}
    return {**model.facts(), "sampler": sampler, **program, "tasks": of_tasks}


def _keep_settings(path: epath.Path, facts: dict) -> None:
    """Raises UserError on the first setting that differs from what is kept; the tasks of both are kept."""
    kept = read_json(path, *facts) if path.exists() else facts
    if not isinstance(kept["tasks"], dict):
        raise UserError(f"{path}: damaged; remove {path.parent} to begin anew")
    before, now = flatten(kept), flatten(facts)
    for key in sorted(set(before) | set(now)):
        of_task = key.startswith("tasks.") and (key not in before or key not in now)
        if not of_task and before.get(key) != now.get(key):
            raise UserError(
                f"{path}: {key} is {before.get(key)!r} there and {now.get(key)!r} now; name another --out, or remove "
                f"{path.parent}"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({**facts, "tasks": {**kept["tasks"], **facts["tasks"]}}, indent=1) + "\n")


def _generate(model: Model, work: _Work, file: epath.Path, settings, batch_size: int, progress: "_Progress") -> None:
    records = work.data.records
    ids = [records[i].id for i in work.order]
    generations = share_errors(lambda: Generations(file, ids) if is_first() else None)
    done = from_first(lambda: generations.done)
    progress.skip(work.cost(work.order[:done]))
    for start in range(done, len(work.order), batch_size):
        chosen = work.order[start : start + batch_size]
        answers = model.sampler.generate([work.tokens[i] for i in chosen], settings, sample_indices=chosen)
        from_first(functools.partial(_keep, generations, model, work, chosen, answers))
        progress.add(work.cost(chosen), f"{work.data.task.name:<12}{start + len(chosen):>7,}/{len(work.order):,}")


def _keep(generations: Generations, model: Model, work: _Work, chosen: list[int], answers: list[list[int]]) -> None:
    generations.add([_output(model, work, i, answer) for i, answer in zip(chosen, answers, strict=True)])


def _output(model: Model, work: _Work, index: int, answer: list[int]) -> Output:
    record, text = work.data.records[index], model.tokenizer.decode_continuation(answer)
    truth = record.truths[0] if len(record.truths) == 1 else list(record.truths)
    return Output(record.id, work.prompts[index], text, truth, list(record.choices))


def _score(model: Model, files: dict, out: epath.Path, facts: dict, keep_decisions: bool) -> dict:
    found = report.scores(score_files(files, out / "decisions" if keep_decisions else None))
    report.write_report(out, found, {"settings": facts, "step": model.step, "family": model.family})
    return found


class _Progress:
    """Lines that say how far it is and how long it takes, by the tokens that have gone through the model."""

    def __init__(self, total: int):
        self._left, self._done = total, 0
        self._began = self._printed = time.monotonic()

    def skip(self, cost: int) -> None:
        """What an earlier start has done."""
        self._left -= cost

    def add(self, cost: int, what: str) -> None:
        self._left, self._done = self._left - cost, self._done + cost
        now = time.monotonic()
        if is_first() and (now - self._printed >= BETWEEN_LINES or not self._left):
            self._printed = now
            speed = self._done / max(now - self._began, 1e-9)
            minutes, seconds = divmod(round(self._left / speed), 60)
            print(f"{what}  {speed:,.0f} tokens/s  {minutes}:{seconds:02d} to go", flush=True)
