"""Evaluation on two tasks by a sampler that knows its answers from the prompts, and can die."""

import json
import math

import jax
from etils import epath

from colajax.evals.model import Model
from colajax.evals.tasks import run as tasks_run
from colajax.evals.tasks.data import read_data
from colajax.evals.tasks.prompts import read_prompts
from colajax.evals.tasks.table import tasks_named
from colajax.sampling.settings import SamplingSettings

SETTINGS = SamplingSettings(temperature=0.0)
TASKS = tasks_named("mmlu,squad")
COUNT = 23


class Letters:
    """A tokenizer of characters."""

    digest = "letters"

    def encode(self, text):
        return [ord(c) for c in text]

    def decode_continuation(self, ids):
        return "".join(map(chr, ids))


class Killed(Exception):
    pass


class Echo:
    """Stands for a sampler: answers with the line behind "say" in the question; dies in the batch `dies_in`."""

    params = {"a": jax.numpy.ones(3)}
    SETTINGS = ("steps", "seed")

    def __init__(self, dies_in=math.inf):
        self.batches, self.asked, self._dies_in = [], [], dies_in

    def generate(self, prompts, settings, *, sample_indices=None):
        if len(self.batches) == self._dies_in:
            raise Killed
        self.batches.append([len(prompt) for prompt in prompts])
        self.asked += zip([Letters().decode_continuation(p) for p in prompts], sample_indices, strict=True)
        said = [Letters().decode_continuation(p).rpartition("say ")[2].partition("\n")[0] for p in prompts]
        return [Letters().encode(f" {text}\n(B) no") for text in said]


def write_data(folder) -> None:
    """23 records of MMLU, of which every third is answered wrongly by Echo, and 23 of SQuAD, all right."""
    mmlu = [{"id": f"m{i}", "question": f"{'long ' * (7 * i % 11)}say yes{i}", "answer": "CD"[i % 3 == 0],
             "choices": ["no", "never", f"yes{i}", "else"]} for i in range(COUNT)]  # fmt: skip
    squad = [{"id": i, "context": "x" * (i % 4), "question": "say it", "answer": ["It", "that"]} for i in range(COUNT)]
    for name, rows in (("mmlu", mmlu), ("squad", squad)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(data, out, sampler, *, settings=SETTINGS, batch_size=4, tasks=TASKS, step=7, **more):
    model = Model(sampler, Letters(), "cola", step, "float32")
    return tasks_run.run_tasks(
        model, read_data(tasks, data), read_prompts(tasks), epath.Path(out), settings, batch_size=batch_size, **more
    )
