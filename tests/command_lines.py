"""Command lines in the tests' own process, up to what they compute, and one of everything that they read."""

import contextlib
import gzip
import importlib
import io
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors
import tiny_runs

from colajax.data.loader import Loader
from colajax.data.prepare import prepare
from colajax.data.tokenizer import load_tokenizer
from colajax.errors import run_main
from colajax.evals import export_parity, llama_parity
from colajax.evals.tasks.outputs import Output
from colajax.evals.tasks.prompts import OURS
from colajax.hf.export import export
from colajax.hf.import_run import make_run, write_group
from colajax.sampling.load import SAMPLERS, run_tokenizer
from colajax.stories.grammar import stories
from colajax.train import __main__ as training
from colajax.train import replay, reporter
from colajax.train.stored import open_arrays
from colajax.train.updates import Skipped

LADDER = """
from colajax.scaling.ladder import Ladder, Member
LADDERS = {"tiny": Ladder((1e-6, 2e-6), (1,), (), {"small": {"cola": Member("configs/cola_vae.py:quickstart")}})}
"""


class Reached(Exception):
    """The command read everything and came to what it computes."""


def make_things(base: Path, records: Path) -> Path:
    """Fills a folder with one of everything that a command reads."""
    for stage in ("vae", "joint", "ar", "llada"):
        _leave_run(base / stage, stage, records)
    (base / "joint" / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "kind": kind, "loss": 1.5, "accuracy": 0.5}) + "\n"
                for step, kind in ((1, "train"), (2, "train"), (2, "eval")))
    )  # fmt: skip
    for stage, out in (("joint", "hf"), ("ar", "ar_hf"), ("llada", "llada_hf")):
        export(base / stage, base / out, run_tokenizer(base / stage), {})
    shutil.copytree(base / "hf", base / "sharded")
    for part in ("cola_vae", "cola_dit"):
        _add_index(base / "sharded" / part)
    (base / "text").mkdir()
    texts = list(stories(5, 60))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (base / "text" / "a.txt").write_text("\n".join(texts))
    (base / "text" / "a.jsonl").write_bytes(lines)
    (base / "text" / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (base / "text" / "a.jsonl.zst").write_bytes(pyarrow.compress(lines, "zstd", asbytes=True))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), base / "text" / "a.parquet")
    _add_tasks(base)
    (base / "ladder.py").write_text(LADDER)
    _add_curves(base)
    (base / "tokenizers").mkdir()
    for name in ("tokenizer.model", "tokenizer.json"):
        shutil.copy(base / "hf" / name, base / "tokenizers")
    prepare([base / "text"], base / "tokenizers" / "tokenizer.model", base / "records", 32, validation_fraction=0.3)
    _add_skipped(base)
    return base


def _leave_run(workdir: Path, stage: str, records: Path) -> None:
    """A run at step 2 with small random parameters."""
    rng = np.random.default_rng(0)

    def write(partial):
        for group, tree in open_arrays(partial, write=True)[1].items():
            leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: not isinstance(x, dict))
            named = [("/".join(key.key for key in keys), array) for keys, array in leaves]
            write_group(partial, group, ((n, None, 0.1 * rng.standard_normal(a.shape, np.float32)) for n, a in named))

    config = tiny_runs.tiny_config(stage, f"records={records}")
    make_run(workdir, config, load_tokenizer(records / "tokenizer.model"), write, step=2)


def _add_index(folder: Path) -> None:
    """The one file as the first of several."""
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        index = {"metadata": {}, "weight_map": dict.fromkeys(file.keys(), "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _add_skipped(base: Path) -> None:
    """An update that the run has left out."""
    config = tiny_runs.tiny_config("joint")
    loader = Loader(base / "records", "train", config.batch_size, config.sequence_length, config.data_seed)
    update = Skipped(2, 2, loader.rows_of(2), {"loss": "nan"}, {"loss": "inf"}, 0, 0)
    (base / "joint" / "skipped").mkdir()
    (base / "joint" / "skipped" / "2-2.json").write_text(json.dumps(update._asdict()))


def _add_curves(base: Path) -> None:
    """Two runs that have been evaluated at two steps."""
    score = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "count": 50}
    for stage in ("joint", "ar"):
        run = base / "curves" / "runs" / stage
        run.mkdir(parents=True)
        shutil.copy(base / stage / "config.json", run)
        costs = [{"tokens": 1000 * step, "eflops": step / 7, "exact_eflops": step / 5} for step in (1, 2)]
        lines = [{"step": step, "kind": "eval", **cost} for step, cost in enumerate(costs, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for step in (1, 2):
            (run / "tasks" / str(step)).mkdir(parents=True)
            report = {"tasks": {"mmlu": score}, "mean": score, "settings": {}}
            (run / "tasks" / str(step) / "tasks.json").write_text(json.dumps(report))


def _add_tasks(base: Path) -> None:
    """Records of three tasks, prompts, and outputs."""
    record = {"id": "1", "question": "Who?", "choices": ["Anna", "Ben", "Tom", "Lucy"], "answer": "B"}
    output = Output("1", "Who?", " Ben", "Ben", record["choices"])
    for folder in ("tasks", "outputs"):
        (base / folder).mkdir()
    (base / "tasks" / "mmlu.jsonl").write_text(json.dumps(record) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Anna saw Ben"]}), base / "tasks" / "lambada.parquet")
    sentences = {**{f"InputSentence{i}": "Anna ran." for i in range(1, 5)}, "RandomFifthSentenceQuiz1": "So.",
                 "RandomFifthSentenceQuiz2": "No.", "AnswerRightEnding": "2"}  # fmt: skip
    lines = (",".join(sentences), ",".join(sentences.values()))
    (base / "tasks" / "story_cloze.csv").write_text("\n".join(lines) + "\n")
    (base / "tasks" / "prompts.json").write_bytes(OURS.read_bytes())
    (base / "outputs" / "mmlu.jsonl").write_text(output.line())


_STAGE_2 = ["--config", tiny_runs.spec("joint"), *[f"--config.{o}" for o in tiny_runs.overrides("joint")]]
COMMANDS = {
    "generate": ["--workdir", "@/joint", "--prompt", "Anna"],
    "generate ar": ["--workdir", "@/ar", "--prompt", "Anna"],
    "generate llada": ["--workdir", "@/llada", "--prompt", "Anna", "--block_length", "8"],
    "evaluate": ["--workdir", "@/joint", "--records", "@/records", "--prefixes", "2"],
    "evaluate tasks": ["--workdir", "@/joint", "--tasks", "lambada,mmlu,story_cloze", "--data", "@/tasks", "--prompts",
                       "@/tasks/prompts.json", "--out", "@/out"],
    "evaluate tasks ar": ["--workdir", "@/ar", "--tasks", "mmlu", "--data", "@/tasks"],
    "report": ["@/joint", "@/curves/runs/ar", "--out", "@/out.html"],
    "scaling plot": ["plot", "--root", "@/curves", "--out", "@/out"],
    "evaluate hf ar": ["--hf", "@/ar_hf", "--tasks", "mmlu", "--data", "@/tasks", "--out", "@/out"],
    "evaluate hf llada": ["--hf", "@/llada_hf", "--tasks", "mmlu", "--data", "@/tasks", "--out", "@/out"],
    "evaluate hf": ["--hf", "@/hf", "--tasks", "mmlu", "--data", "@/tasks", "--out", "@/out"],
    "evaluate ar_hf": ["--hf", "@/ar_hf", "--tasks", "mmlu", "--data", "@/tasks", "--out", "@/out"],
    "evaluate rescore": ["--rescore", "@/outputs"],
    "export_hf": ["--workdir", "@/joint", "--out", "@/out", "--skip_verify"],
    "export_hf ar": ["--workdir", "@/ar", "--out", "@/out", "--skip_verify"],
    "export_hf llada": ["--workdir", "@/llada", "--out", "@/out", "--skip_verify"],
    "verify_export ar": ["--workdir", "@/ar", "--hf", "@/ar_hf"],
    "verify_export": ["--workdir", "@/joint", "--hf", "@/hf"],
    "import_hf": ["--hf", "@/hf", "--workdir", "@/out", *_STAGE_2],
    "import_hf sharded": ["--hf", "@/sharded", "--workdir", "@/out", *_STAGE_2],
    "import_hf ar": ["--hf", "@/ar_hf", "--workdir", "@/out"],
    "import_hf llada": ["--hf", "@/llada_hf", "--workdir", "@/out"],
    "train": ["--config", "@/joint/config.json", "--workdir", "@/joint", "--config.records=@/records"],
    "train begun": [*_STAGE_2, "--workdir", "@/out", "--config.records=@/records", "--config.init_from=@/vae"],
    "inspect_records": ["@/records"],
    "inspect_records row": ["@/records", "--row", "3"],
    "inspect_records stats": ["@/records", "--stats", "--out", "@/out.png"],
    "replay": ["@/joint/skipped/2-2.json", "--config.records=@/records"],
    "prepare_data": ["--input", "@/text", "--tokenizer", "@/tokenizers/tokenizer.model", "--out", "@/out",
                     "--sequence_length", "32", "--workers", "1", "--validation_fraction", "0.3"],
    "prepare_data json": ["--input", "@/text/a.jsonl", "--tokenizer", "@/tokenizers/tokenizer.json", "--out", "@/out",
                          "--sequence_length", "32", "--workers", "1", "--validation_fraction", "0.3"],
    "prepare_data again": ["--input", "@/text", "--tokenizer", "@/tokenizers/tokenizer.model", "--out", "@/records",
                           "--sequence_length", "32", "--workers", "1", "--validation_fraction", "0.3"],
    "train_tokenizer": ["--input", "@/text", "--out", "@/out.model", "--vocab_size", "400"],
}  # fmt: skip


class Ended(NamedTuple):
    status: int
    output: str
    errors: str


def run(command: str, arguments: list[str]) -> Ended:
    """A command line in this process, up to what it computes."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    status = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tiny_runs.ROOT / "tools")
        module = training if command == "train" else importlib.import_module(command)
        patch.setattr(sys, "argv", [command, *arguments])
        for family in SAMPLERS.values():
            patch.setattr(family, "generate", _reach)
        patch.setattr(reporter, "Speed", _reach)
        patch.setattr(replay, "Updates", _reach)
        for starts_processes in (training, module):
            patch.setattr(starts_processes, "join", lambda: None, raising=False)
        patch.setattr(export_parity, "_compare_vae", _reach)
        patch.setattr(llama_parity, "outputs", _reach)
        if command == "plan":
            patch.setattr(module, "make_plan", _reach)
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
                run_main(module.main)
        except SystemExit as end:
            status = end.code or 0
        except Reached:
            pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return Ended(status, *(stream.buffer.getvalue().decode() for stream in (output, errors) if not stream.flush()))


def _reach(*args, **kwargs):
    raise Reached


def given(name: str, base: Path) -> list[str]:
    """The arguments of one of COMMANDS on the things in `base`."""
    return [argument.replace("@", str(base)) for argument in COMMANDS[name]]


def assert_refused(errors: str) -> None:
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def tree(base: Path) -> list[str]:
    """Every folder and file in it."""
    return sorted(f"{folder}/{name}" for folder, *named in os.walk(base) for name in itertools.chain(*named))
