"""The command lines from text to records: bad input, signals, killed processes."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sentencepiece
from corpora import DOCUMENTS

from colajax.data.prepare import prepare

ROOT = Path(__file__).parent.parent


def _tool(name, *arguments):
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_command_lines_from_text_to_records(corpus, tmp_path):
    model, out = tmp_path / "t.model", tmp_path / "r"
    done = _tool("train_tokenizer.py", "--input", corpus, "--out", model, "--vocab_size", 30000)
    assert done.returncode == 0, done.stderr
    assert "the text supports no more" in done.stdout
    arguments = ["--input", corpus, "--tokenizer", model, "--out", out, "--sequence_length", 64, "--workers", 2]
    done = _tool("prepare_data.py", *arguments, "--validation_fraction", 0.1)
    assert done.returncode == 0, done.stderr
    assert "train: " in done.stdout
    assert "% padding" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "t.model"]
    done = _tool("prepare_data.py", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "validation_fraction (0.1, now 0.02)" in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_far_in_ends_with_status_2_one_line_and_no_files(corpus, tokenizer, tmp_path, workers):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes((corpus / "a.jsonl").read_bytes() + b'{"txt": "late"}\n')
    out = tmp_path / "r"
    arguments = ["--input", corpus, corpus, corpus, bad]  # enough for the workers to have begun
    arguments += ["--tokenizer", tokenizer.path, "--out", out, "--sequence_length", 64]
    done = _tool("prepare_data.py", *arguments, "--workers", workers)
    assert done.returncode == 2
    assert done.stderr == f"error: {bad}:121: no field 'text'; it has txt; name one with --text_field\n"
    assert list(tmp_path.iterdir()) == [bad]


# prepare_data with two workers that never end: python STUCK, and what the command is given. Prints the workers' process
# ids as soon as there are two.
STUCK = """
import multiprocessing, os, pathlib, runpy, sys, threading, time
def say():
    out = pathlib.Path(os.environ["STUCK_OUT"])
    while len(workers := multiprocessing.active_children()) < 2 or not (out / "r.parts").exists():
        time.sleep(0.02)
    print(*(worker.pid for worker in workers), flush=True)
if __name__ == "__main__":
    threading.Thread(target=say, daemon=True).start()
    import small_parts
    from colajax.data import parts, prepare
    parts.SMALLEST, prepare.prepare_part = 4096, small_parts.forever
    runpy.run_path("tools/prepare_data.py", run_name="__main__")
"""


def _alive(process):
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def stuck(corpus, tokenizer, tmp_path):
    """A prepare_data that goes on for ever, and its two workers."""
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    (tmp_path / "out").mkdir()
    command = [sys.executable, str(script), "--input", corpus, "--tokenizer", tokenizer.path, "--sequence_length", 64]
    command += ["--workers", 2, "--out", tmp_path / "out" / "r"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "STUCK_OUT": str(tmp_path / "out")}
    process = subprocess.Popen(
        map(str, command), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    workers = [int(number) for number in process.stdout.readline().split()]
    assert len(workers) == 2
    yield process, workers
    process.kill()
    process.wait()


def _wait_for_end(processes):
    deadline = time.monotonic() + 30
    while any(map(_alive, processes)):
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.05)


def test_killed_it_leaves_no_worker_and_the_next_start_clears_what_it_left(stuck, corpus, tokenizer, tmp_path):
    process, workers = stuck
    process.kill()
    process.wait()
    _wait_for_end(workers)
    assert list((tmp_path / "out").iterdir())
    prepare([corpus], tokenizer.path, tmp_path / "out" / "r", 64)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["r"]


def test_what_the_same_container_left_before_it_was_started_again_is_in_nobodys_way(corpus, tokenizer, tmp_path):
    """Its processes have the numbers they had, and its machine the name."""
    left = tmp_path / f"r.tmp-{socket.gethostname()}-{os.getpid()}"
    left.mkdir()
    (left / "train-00000.unfinished").write_text("half")
    prepare([corpus], tokenizer.path, tmp_path / "r", 64)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert not list((tmp_path / "r").glob("*.unfinished"))


def test_terminated_it_leaves_nothing(stuck, tmp_path):
    process, workers = stuck
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "terminated\n")
    _wait_for_end(workers)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_worker_that_is_killed_for_memory_is_one_line_that_says_what_to_do(stuck, tmp_path):
    process, workers = stuck
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("error: one of the 2 processes was killed")
    assert "fewer --workers" in errors
    assert errors.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tokenizer_that_cannot_be_exported_or_loses_text_is_refused_before_any_work(corpus, tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(DOCUMENTS), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=3,
        pad_id=3, user_defined_symbols=["river"],
    )  # fmt: skip
    (tmp_path / "t.model").write_bytes(model.getvalue())
    (tmp_path / "t.json").write_text(
        '{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": {"type": '
        '"WordLevel", "vocab": {"a": 0, "<pad>": 1, "</s>": 2}, "unk_token": "a"}}'
    )
    for name, message in (("t.model", "user-defined"), ("t.json", "'<pad>' is an ordinary word in it too")):
        arguments = ["--input", corpus, "--tokenizer", tmp_path / name, "--out", tmp_path / "r"]
        done = _tool("prepare_data.py", *arguments, "--sequence_length", 64)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
        assert f"{tmp_path / name}: " in done.stderr
        assert message in done.stderr
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_of_another_kind_is_named_by_both_command_lines(corpus, tmp_path):
    text = tmp_path / "text"
    shutil.copytree(corpus, text)
    (text / "report.docx").write_text("")
    line = f"left out: 1 file of another kind: {text}/report.docx; read are .txt, "
    done = _tool("train_tokenizer.py", "--input", text, "--out", tmp_path / "t.model", "--vocab_size", 400)
    assert done.stdout.startswith(line)
    arguments = ["--input", text, "--tokenizer", tmp_path / "t.model", "--out", tmp_path / "r", "--workers", 1]
    done = _tool("prepare_data.py", *arguments, "--sequence_length", 64)
    assert done.stdout.startswith(line)
    assert done.stdout.count("report.docx") == 1


@pytest.mark.parametrize("count", ["0", "-3", "9" * 30])
def test_make_corpus_refuses_numbers_of_stories_that_there_are_not(tmp_path, count):
    done = _tool("make_corpus.py", "--kind", "stories", "--out", tmp_path / "a.jsonl", "--count", count)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: --count {count}: expected 1 to 10000000 documents\n"
    assert list(tmp_path.iterdir()) == []


def test_train_tokenizer_ends_with_status_2_and_no_files(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    done = _tool("train_tokenizer.py", "--input", tmp_path, "--out", tmp_path / "t.model", "--vocab_size", 300)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: no text in it")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]
