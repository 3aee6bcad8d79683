"""Preparation by Apache Beam, which launch/test.sh puts in a folder of its own: against what this machine's processes
make of the same text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import DOCUMENTS, contents, write_corpus
from small_parts import SMALL

from colajax.chaos.bucket_server import BUCKET
from colajax.data import parts
from colajax.data.parts import parts_of
from colajax.data.prepare import prepare
from colajax.files import files_under

ROOT = Path(__file__).parent.parent
BEAM = Path(sys.prefix) / "beam"
IN_PROCESS = ["--runner", "DirectRunner"]
IN_TWO = ["--runner", "DirectRunner", "--direct_num_workers", "2", "--direct_running_mode", "multi_processing"]

@pytest.fixture
def by_beam(tokenizer, tmp_path):
    """by_beam(flags, *arguments): the finished command."""
    assert BEAM.is_dir(), f"no Apache Beam in {BEAM}: bash launch/test.sh puts it there"
    (tmp_path / "small.py").write_text(SMALL)

    def run(flags, *arguments):
        command = [sys.executable, tmp_path / "small.py", "--tokenizer", tokenizer.path, "--sequence_length", 64]
        command += [*arguments, "--engine", "beam", "--", *flags]
        environment = os.environ | {"PYTHONPATH": f"{BEAM}:{ROOT}"}
        return subprocess.run(map(str, command), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "a.jsonl", [*DOCUMENTS, *DOCUMENTS[40:]])
    write_corpus(tmp_path / "b.jsonl", DOCUMENTS[3:50])
    return [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]


@pytest.mark.parametrize("flags", [IN_PROCESS, IN_TWO])
def test_records_are_those_of_local_processes(by_beam, corpus, tokenizer, tmp_path, monkeypatch, flags):
    monkeypatch.setattr(parts, "SMALLEST", 3500)
    prepare(corpus, tokenizer.path, tmp_path / "local", 64, validation_fraction=0.2, deduplicate=True)
    done = by_beam(flags, "--input", *corpus, "--out", tmp_path / "r", "--validation_fraction", 0.2, "--deduplicate")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "r") == contents(tmp_path / "local")
    assert len(json.loads((tmp_path / "r" / "metadata.json").read_text())["source"]) == len(parts_of(corpus)) > 5
    assert not (tmp_path / "r.parts").exists()


def test_all_of_it_may_be_in_a_bucket(server, by_beam, corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SMALLEST", 3500)
    folder = BUCKET / "beam"
    for file in corpus:
        (folder / "text" / file.name).write_bytes(file.read_bytes())
    prepare(corpus, tokenizer.path, tmp_path / "local", 64, validation_fraction=0.2)
    out = folder / "records"
    done = by_beam(IN_TWO, "--input", folder / "text", "--out", out, "--validation_fraction", 0.2)
    assert done.returncode == 0, done.stderr
    found, expected = contents(out), contents(tmp_path / "local")
    facts = [json.loads(of.pop("metadata.json")) for of in (found, expected)]
    assert found == expected
    assert [part["sha256"] for part in facts[0]["source"]] == [part["sha256"] for part in facts[1]["source"]]
    assert not [file for file in files_under(folder) if "records.parts" in str(file) or ".tmp-" in str(file)]


def test_what_a_worker_refuses_is_one_line_and_what_is_done_is_kept(by_beam, corpus, tokenizer, tmp_path):
    good = corpus[1].read_text()
    corpus[1].write_text(good + '{"txt": "late"}\n')
    arguments = ["--input", *corpus, "--out", tmp_path / "r"]
    done = by_beam(IN_TWO, *arguments)
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: {corpus[1]}:48: no field 'text'; it has txt; name one with --text_field\n")
    assert "parts are done and kept in" in done.stdout
    assert not (tmp_path / "r").exists()
    kept = [path for path in (tmp_path / "r.parts").iterdir() if path.suffix != ".refused"]
    assert len(kept) >= 5
    corpus[1].write_text(good)
    assert by_beam(IN_PROCESS, *arguments).returncode == 0
