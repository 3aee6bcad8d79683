"""Evaluation on the tasks: killed anywhere it comes to the same files, and no sample goes through the model twice."""

import importlib
import json
import signal
import subprocess
import sys

import jax
import pytest
import tiny_runs
from echo import COUNT, TASKS, Echo, Killed, evaluate, write_data

from colajax.errors import UserError
from colajax.sampling.cola import Sampler
from colajax.sampling.settings import SamplingSettings


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_data(folder)
    return folder


def files(out) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_every_record_is_answered_once_in_batches_of_like_length(data, tmp_path):
    sampler, out = Echo(), tmp_path / "out"
    scores = evaluate(data, out, sampler, keep_decisions=True)
    assert scores["mmlu"].accuracy == pytest.approx(15 / COUNT)
    assert scores["squad"].accuracy == 1
    assert scores["mean"].accuracy == pytest.approx((15 / COUNT + 1) / 2)

    assert len(set(sampler.asked)) == len(sampler.asked) == 2 * COUNT
    assert [len(batch) for batch in sampler.batches] == [4, 4, 4, 4, 4, 3] * 2
    for batches in (sampler.batches[:6], sampler.batches[6:]):
        lengths = [length for batch in batches for length in batch]
        assert lengths == sorted(lengths)
    for task in ("mmlu", "squad"):
        lines = [json.loads(line) for line in (out / "generations" / f"{task}.jsonl").read_text().splitlines()]
        assert {tuple(line) for line in lines} == {("id", "prompt", "generate", "ground_truth", "choices")}
        assert len(lines) == COUNT
        if task == "mmlu":  # a sample's index is its place in the data, whatever the batch
            assert {line["id"] for line in lines} == {f"m{dict(sampler.asked)[line['prompt']]}" for line in lines}
    decisions = [json.loads(line) for line in (out / "decisions" / "mmlu.jsonl").read_text().splitlines()]
    assert sum(decision["right"] for decision in decisions) == 15

    found = json.loads((out / "tasks.json").read_text())
    assert (found["step"], found["family"]) == (7, "cola")
    assert found["tasks"]["mmlu"] == scores["mmlu"]._asdict()
    assert found["mean"] == scores["mean"]._asdict()
    assert found["settings"]["sampler"] == {"steps": 16, "seed": 0}
    rows = (out / "tasks.csv").read_text().splitlines()
    assert rows[0] == "task,accuracy,count,low,high"
    assert [row.split(",")[0] for row in rows[1:]] == ["mmlu", "squad", "mean"]


@pytest.mark.parametrize("torn", [b"", b'{"id": "m3", "pro', b'{"id": "m3"}'])
def test_killed_at_every_batch_it_ends_with_the_same_files(torn, data, tmp_path):
    """Each start dies one batch later than the one before it, and leaves a part of a line behind."""
    whole, out, asked = tmp_path / "whole", tmp_path / "out", []
    expected = evaluate(data, whole, Echo())
    for _ in range(11):
        sampler = Echo(dies_in=1)
        with pytest.raises(Killed):
            evaluate(data, out, sampler)
        asked += sampler.asked
        grown = sorted((out / "generations").glob("*.jsonl"))[-1]
        grown.write_bytes(grown.read_bytes() + torn)
    sampler = Echo()
    assert evaluate(data, out, sampler, batch_size=3) == expected
    asked += sampler.asked
    assert len(set(asked)) == len(asked) == 2 * COUNT
    assert files(out) == files(whole)
    assert evaluate(data, out, Echo(dies_in=0)) == expected  # nothing is left to do


def test_another_batch_size_changes_nothing(data, tmp_path):
    for size in (1, 100):
        evaluate(data, tmp_path / str(size), Echo(), batch_size=size)
    assert files(tmp_path / "1") == files(tmp_path / "100")


def test_tasks_can_be_added(data, tmp_path):
    evaluate(data, tmp_path / "out", Echo(), tasks=TASKS[:1])
    sampler = Echo()
    evaluate(data, tmp_path / "out", sampler)
    assert len(sampler.asked) == COUNT
    evaluate(data, tmp_path / "both", Echo())
    assert files(tmp_path / "out") == files(tmp_path / "both")


def test_other_settings_are_refused(data, tmp_path):
    evaluate(data, tmp_path / "out", Echo())
    before = files(tmp_path / "out")
    other = Echo()
    other.params = {"a": jax.numpy.zeros(3)}
    for said, sampler, more in (
        ("sampler.seed is 0 there and 1 now", Echo(), {"settings": SamplingSettings(seed=1, temperature=0.0)}),
        ("step is 7 there and 8 now", Echo(), {"step": 8}),
        ("parameters is", other, {}),
    ):
        with pytest.raises(UserError, match=said):
            evaluate(data, tmp_path / "out", sampler, **more)
    rows = (data / "mmlu.jsonl").read_text().splitlines()
    (data / "mmlu.jsonl").write_text("\n".join(rows[1:]))
    with pytest.raises(UserError, match=r"tasks\.mmlu\.data is"):
        evaluate(data, tmp_path / "out", Echo())
    assert files(tmp_path / "out") == before


def test_outputs_of_others_are_not_gone_on_from(data, tmp_path):
    with pytest.raises(Killed):
        evaluate(data, tmp_path / "out", Echo(dies_in=2))
    file = tmp_path / "out" / "generations" / "mmlu.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    for content in (lines[1:], [b"{}\n", *lines], [b"\xff\n"], lines * 9):
        file.write_bytes(b"".join(content))
        with pytest.raises(UserError, match=r"mmlu\.jsonl:\d+: not the output of record"):
            evaluate(data, tmp_path / "out", Echo())


@pytest.mark.parametrize("content", ["", "[]", "{}", "null"])
def test_damaged_settings_are_named(content, data, tmp_path):
    evaluate(data, tmp_path / "out", Echo())
    (tmp_path / "out" / "settings.json").write_text(content)
    with pytest.raises(UserError, match=r"settings\.json: damaged"):
        evaluate(data, tmp_path / "out", Echo())


# python -c KILLED BATCH, and what tools/evaluate.py is given: the process kills itself while it writes that batch.
KILLED = """
import os, signal, sys
sys.path.insert(0, "tools")
import evaluate
from colajax.errors import run_main
from colajax.evals.tasks.generations import Generations
at, add = int(sys.argv.pop(1)), Generations.add
def half_and_kill(self, outputs):
    global at
    at -= 1
    if at >= 0:
        return add(self, outputs)
    with open(self._file, "ab") as file:
        file.write(outputs[0].line().encode()[:-20])
    os.kill(os.getpid(), signal.SIGKILL)
Generations.add = half_and_kill
run_main(evaluate.main)
"""


def test_a_killed_process_goes_on_with_a_real_model(things, tmp_path, monkeypatch, capsys):
    """Prompts and batches of one size, for which there is one program to compile."""
    data = tmp_path / "data"
    data.mkdir()
    for name, count in (("lambada", 4), ("squad", 7)):
        rows = [{"id": i, "context": "", "question": f"Anna {i}", "answer": "x"} for i in range(count)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "prompts.json").write_text(json.dumps({"templates": dict.fromkeys(("lambada", "squad"), "{question}")}))
    given = ["--workdir", str(things / "joint"), "--tasks", "squad,lambada", "--data", str(data), "--prompts",
             str(data / "prompts.json"), "--steps", "2", "--guidance", "1", "--batch_size", "4"]  # fmt: skip
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "2", *given, "--out", str(tmp_path / "out")], cwd=tiny_runs.ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    left = (tmp_path / "out" / "generations" / "squad.jsonl").read_bytes()
    assert left.count(b"\n") == 4
    assert not left.endswith(b"\n")
    assert not (tmp_path / "out" / "tasks.json").exists()

    monkeypatch.syspath_prepend(tiny_runs.ROOT / "tools")
    evaluate = importlib.import_module("evaluate")
    monkeypatch.setattr(evaluate, "join", lambda: None)
    asked, generate = [], Sampler.generate

    def noted(self, prompts, settings, *, sample_indices):
        asked.extend(sample_indices)
        return generate(self, prompts, settings, sample_indices=sample_indices)

    monkeypatch.setattr(Sampler, "generate", noted)
    for out in ("out", "whole"):
        monkeypatch.setattr(sys, "argv", ["evaluate", *given, "--out", str(tmp_path / out)])
        evaluate.main()
    assert asked == [4, 5, 6, *range(4), *range(7)]
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert capsys.readouterr().out.count("2 tasks") == 2
