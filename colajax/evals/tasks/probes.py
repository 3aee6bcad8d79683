"""Probes: the eight tasks made of the story world, and a corpus that asks such questions about other people and places.

Prompts are ours without demonstrations, which a small model's rows have no room for: its corpus teaches it the formats.
"""

import json
import random
from collections.abc import Iterator

from etils import epath

from colajax.data.text import read_documents
from colajax.errors import UserError
from colajax.evals.tasks.data import Record
from colajax.evals.tasks.prompts import Template, read_prompts
from colajax.evals.tasks.table import TASKS
from colajax.files import whole
from colajax.stories.probes import Probe, draw_story, is_held_out, make_probe, people_and_place


def templates() -> dict[str, Template]:
    """Our prompts' last parts, where the record is asked about."""
    ours = read_prompts(list(TASKS.values()))
    return {name: Template(template.text.rpartition("\n\n")[2]) for name, template in ours.items()}


def corpus(seed: int, count: int) -> Iterator[str]:
    """`count` documents, none about held-out people and places: a quarter stories, the others questions with their
    answers in the formats of the tasks, most of which begin with a story too."""
    rng, forms = random.Random(seed), templates()
    asked = [name for name in TASKS if name != "lambada"]  # whose text is a story's
    for _ in range(count):
        if rng.random() < 0.25:
            yield draw_story(rng, held_out=False).text()
        else:
            task = rng.choice(asked)
            probe = make_probe(task, rng, held_out=False)
            yield f"{forms[task].fill(_record('', probe))} {probe.answer}"


def write_probes(out: epath.PathLike, seed: int, count: int) -> None:
    """Makes the folder `out`: TASK.jsonl with `count` records of each task, no two the same, and prompts.json."""
    out, rng = epath.Path(out), random.Random(seed)
    if out.exists():
        raise UserError(f"{out}: exists; remove it or name another folder")
    with whole(out, last="prompts.json") as partial:
        partial.mkdir(parents=True)
        for name in TASKS:
            probes: dict[tuple[str, str], Probe] = {}
            while len(probes) < count:
                probe = make_probe(name, rng, held_out=True)
                probes.setdefault((probe.question, probe.context), probe)
            lines = [_line(f"{name}-{i}", probe) for i, probe in enumerate(probes.values())]
            (partial / f"{name}.jsonl").write_text("".join(lines))
        found = {"source": "the prompts of colajax without demonstrations",
                 "templates": {name: template.text for name, template in templates().items()}}  # fmt: skip
        (partial / "prompts.json").write_text(json.dumps(found, indent=1) + "\n")


def count_contaminated(path: epath.PathLike) -> tuple[int, int]:
    """(documents about held-out people and places, all documents) of a corpus."""
    held_out = total = 0
    for text in read_documents([path]):
        about = people_and_place(text)
        held_out, total = held_out + (about is not None and is_held_out(*about)), total + 1
    return held_out, total


def _record(id_: str, probe: Probe) -> Record:
    return Record(id_, probe.question, probe.context, tuple(probe.choices), (probe.answer,))


def _line(id_: str, probe: Probe) -> str:
    row = {"id": id_, "question": probe.question, "choices": list(probe.choices), "answer": probe.answer}
    return json.dumps(row | ({"context": probe.context} if probe.context else {})) + "\n"
