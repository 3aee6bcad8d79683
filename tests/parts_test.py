"""Preparation in parts: by whoever, killed at any moment, of documents that are left out."""

import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from command_lines import run
from corpora import DOCUMENTS, LONG, contents, write_corpus
from refusals import error_of
from small_parts import SMALL

from colajax.data import engines, part_records, parts
from colajax.data.inspection import pieces_of
from colajax.data.parts import Reading, Tally, parts_of, read_part
from colajax.data.prepare import prepare
from colajax.data.records import SPLITS, Records, read_metadata
from colajax.data.text import read_documents
from colajax.data.token_files import read_token_file
from colajax.errors import UserError

ROOT = Path(__file__).parent.parent
LENGTH = 64


@pytest.fixture
def folder(tmp_path, tokenizer):
    """Large and small files of every kind that is cut and of one that is not."""
    text = tmp_path / "text"
    text.mkdir()
    lines = [json.dumps({"text": t}) for t in (*DOCUMENTS, LONG, *DOCUMENTS[:30])]
    (text / "a.jsonl").write_text("\n".join(lines).replace("\n", "\n \n", 9))  # no end of line at the end
    for i in range(6):
        write_corpus(text / f"b{i}.jsonl", DOCUMENTS[i : i + 3])
    (text / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    pyarrow.parquet.write_table(pa.table({"text": DOCUMENTS}), text / "d.parquet", row_group_size=7)
    (text / "e.txt").write_text(LONG)
    return text


@pytest.mark.parametrize("size", [100, 500, 7001, 60_000, 2**25])
def test_every_document_is_in_one_part_and_in_order(folder, tokenizer, monkeypatch, size):
    monkeypatch.setattr(parts, "SMALLEST", size)
    monkeypatch.setattr(parts, "MOST", 10**9)
    files = sorted(folder.iterdir())
    found = parts_of(files)
    assert [text for part in found for text in read_part(part, Reading(), tokenizer)] == list(read_documents([folder]))
    assert sum(part.size for part in found) >= sum(file.stat().st_size for file in files if file.suffix != ".parquet")
    if size == 7001:
        assert max(len(part.ranges) for part in found) > 3  # small files are together
        assert sum(part.ranges[0].file.endswith("a.jsonl") for part in found) > 10
        assert sum(part.ranges[-1].file.endswith("d.parquet") for part in found) > 2
        assert sum(span.file.endswith("c.jsonl.gz") for part in found for span in part.ranges) == 1


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("size", [4, 100, 3000])
def test_documents_of_tokens_are_in_one_part(tokenizer, tmp_path, monkeypatch, size, dtype):
    """Also where a part begins at an end of text, or with it."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 30, 200)
    ids = [[*rng.integers(3, 300, length), tokenizer.eos_id] for length in lengths]
    np.concatenate(ids).astype(dtype).tofile(tmp_path / "a.bin")
    np.save(tmp_path / "b.npy", np.concatenate(ids)[:-1].astype(dtype))
    monkeypatch.setattr(parts, "SMALLEST", size)
    monkeypatch.setattr(parts, "MOST", 10**9)
    files = [tmp_path / "a.bin", tmp_path / "b.npy"]
    cut = parts_of(files, dtype)
    assert len(cut) > 5
    found = [document.tolist() for part in cut for document in read_part(part, Reading(token_type=dtype), tokenizer)]
    assert found == 2 * [document[:-1] for document in ids if len(document) > 1]
    assert found == [document.tolist() for file in files for document in read_token_file(file, dtype, tokenizer)]


def test_of_a_large_input_there_are_not_many_parts(tmp_path):
    """Of files that take no disk."""
    files = []
    for i in range(3000):
        files.append(tmp_path / f"{i:04d}.jsonl")
        with files[-1].open("wb") as file:
            file.truncate(300_000_000)
    assert 1000 <= len(parts_of(files)) <= 2000


def test_records_do_not_depend_on_who_prepares_them(folder, tokenizer, tmp_path, monkeypatch):
    """Nor do many parts lose a document. Of Apache Beam see beam_test."""
    monkeypatch.setattr(parts, "SMALLEST", 7000)
    settings = {"validation_fraction": 0.2, "rows_per_shard": 25}
    metadata = prepare([folder], tokenizer.path, tmp_path / "one", LENGTH, **settings)
    assert prepare([folder], tokenizer.path, tmp_path / "two", LENGTH, workers=2, **settings) == metadata
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "text", "two"]
    assert len(metadata["source"]) > 20
    for name, split in metadata["splits"].items():
        rows = Records.open(tmp_path / "one", name)
        tokens = np.stack([rows[i] for i in range(len(rows))])
        assert split["tokens"] == (tokens != tokenizer.pad_id).sum()
        assert split["documents"] == (tokens == tokenizer.eos_id).sum()
    texts = list(read_documents([folder]))
    assert sum(split["documents"] for split in metadata["splits"].values()) == len(texts)


def test_killed_again_and_again_it_goes_on_where_it_was(folder, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SMALLEST", 3500)
    prepare([folder], tokenizer.path, tmp_path / "alone", LENGTH)
    (tmp_path / "small.py").write_text(SMALL)
    out, work = tmp_path / "r", tmp_path / "r.parts"
    command = [sys.executable, tmp_path / "small.py", "--input", folder, "--tokenizer", tokenizer.path, "--out", out]
    command = [*map(str, command), "--sequence_length", str(LENGTH), "--workers", "2"]
    environment, kept = os.environ | {"PYTHONPATH": str(ROOT)}, {}
    for more in (1, 8, 3):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while len(files := [*work.glob("[!.]" * 20 + "/part.json")]) < len(kept) + more:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert kept.items() <= {file: file.stat().st_ino for file in files}.items()  # none was made again
        kept = {file: file.stat().st_ino for file in files}
    shards = {shard.stat().st_ino for file in kept for shard in file.parent.glob("*.array_record")}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert contents(out) == contents(tmp_path / "alone")
    assert shards <= {shard.stat().st_ino for shard in out.iterdir()}  # nor copied
    assert not work.exists()
    assert done.stdout.startswith("train: ")


def test_what_is_done_is_kept_where_a_document_is_bad(folder, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "SMALLEST", 3500)
    prepare([folder], tokenizer.path, tmp_path / "alone", LENGTH)
    good = (folder / "b5.jsonl").read_bytes()
    (folder / "b5.jsonl").write_bytes(good + b'{"txt": ""}\n')
    message = error_of(lambda: prepare([folder], tokenizer.path, tmp_path / "r", LENGTH))
    assert message.startswith(f"{folder}/b5.jsonl:4: no field 'text'")
    assert "parts are done and kept in" in capsys.readouterr().out
    assert not (tmp_path / "r").exists()
    (folder / "b5.jsonl").write_bytes(good)
    prepare([folder], tokenizer.path, tmp_path / "r", LENGTH)
    found, expected = contents(tmp_path / "r"), contents(tmp_path / "alone")
    facts = [json.loads(of.pop("metadata.json")) for of in (found, expected)]
    assert found == expected
    assert facts[0].pop("inputs") != facts[1].pop("inputs")  # of a file that was written anew
    assert facts[0] == facts[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "r", "text"]


def test_a_line_far_in_is_named_by_its_number(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SMALLEST", 1000)
    path = write_corpus(tmp_path / "a.jsonl", DOCUMENTS)
    path.write_text(path.read_text() + '{"text": 7}\n')
    (tmp_path / "b").mkdir()
    texts = pa.array([*DOCUMENTS, None])
    pyarrow.parquet.write_table(pa.table({"text": texts}), tmp_path / "b" / "b.parquet", row_group_size=5)
    for name in ("a.jsonl", "b/b.parquet"):
        message = error_of(lambda name=name: prepare([tmp_path / name], tokenizer.path, tmp_path / "r", LENGTH))
        assert message.startswith(f"{tmp_path}/{name}:121: 'text' is a ")


def test_a_file_that_changes_while_it_is_prepared_is_refused(tokenizer, tmp_path):
    path = write_corpus(tmp_path / "a.jsonl", DOCUMENTS)
    [part] = parts_of([path])
    path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl: changed since its parts were counted \(.* run the same command"):
        list(read_part(part, Reading(), tokenizer))
    [part] = parts_of([path])
    documents = read_part(part, Reading(), tokenizer)
    next(documents)
    path.write_text("")
    with pytest.raises(UserError, match=r"a\.jsonl: changed"):
        list(documents)


def test_the_same_text_elsewhere_is_up_to_date_and_another_is_not(folder, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "SMALLEST", 7000)
    prepare([folder], tokenizer.path, tmp_path / "r", LENGTH)
    folder = folder.rename(tmp_path / "moved")
    prepare([folder], tokenizer.path, tmp_path / "r", LENGTH, workers=2)
    assert "is up to date" in capsys.readouterr().out
    changed = folder / "b5.jsonl"
    changed.write_text(changed.read_text().replace("5.", "6."))
    message = error_of(lambda: prepare([folder], tokenizer.path, tmp_path / "r", LENGTH))
    assert "already there with another source" in message


def texts_of(folder, tokenizer) -> list[str]:
    """Of all rows; these documents are shorter than a row."""
    rows = [row for split in SPLITS for row in Records.open(folder, split)]
    pieces = [piece for row in rows for piece in pieces_of(row, tokenizer.eos_id, tokenizer.pad_id)]
    return sorted(tokenizer.decode(piece.tokens.tolist()) for piece in pieces)


@pytest.mark.parametrize("workers", [1, 2])
def test_copies_are_left_out_whatever_part_they_are_in(tokenizer, tmp_path, monkeypatch, capsys, workers):
    monkeypatch.setattr(parts, "SMALLEST", 2000)
    write_corpus(tmp_path / "a.jsonl", [*DOCUMENTS[:50], *DOCUMENTS[:20]])
    write_corpus(tmp_path / "b.jsonl", [*reversed(DOCUMENTS), DOCUMENTS[7] + " "])
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    settings = {"validation_fraction": 0.2, "deduplicate": True, "workers": workers}
    metadata = prepare(inputs, tokenizer.path, tmp_path / "r", 512, **settings)
    assert texts_of(tmp_path / "r", tokenizer) == sorted([*DOCUMENTS, DOCUMENTS[7] + " "])
    assert metadata["left_out"] == {"copy": 70}
    assert "documents left out: 70 copies of earlier ones\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"already there with another deduplicate \(True, now None\)"):
        prepare(inputs, tokenizer.path, tmp_path / "r", 512, validation_fraction=0.2)


def test_short_long_and_bad_documents_are_left_out_and_counted(tokenizer, tmp_path, capsys):
    path = write_corpus(tmp_path / "a.jsonl", DOCUMENTS)
    good = path.read_text()
    path.write_text(good.replace("\n", '\nnot JSON\n{"text": null}\n', 2))
    lengths = sorted(map(len, DOCUMENTS))
    arguments = ["--input", path, "--tokenizer", tokenizer.path, "--out", tmp_path / "r", "--sequence_length", 512,
                 "--validation_fraction", 0.2, "--shortest", lengths[10], "--longest", lengths[-6],
                 "--bad_documents", "skip"]  # fmt: skip
    status, said, errors = run("prepare_data", list(map(str, arguments)))
    assert (status, errors) == (0, "")
    assert texts_of(tmp_path / "r", tokenizer) == sorted(t for t in DOCUMENTS if lengths[10] <= len(t) <= lengths[-6])
    left_out = read_metadata(tmp_path / "r")["left_out"]
    assert left_out == {"bad": 4, "short": sum(n < lengths[10] for n in lengths), "long": 5}
    assert f"4 bad (the first: {path}:2: not JSON" in said
    tally, [part] = Tally(), parts_of([path])
    list(read_part(part, Reading(bad_documents="skip"), tokenizer, tally))
    of_all = b"".join(len(text.encode()).to_bytes(8, "little") + text.encode() for text in DOCUMENTS)
    assert tally.digest == hashlib.sha256(of_all).hexdigest()


def test_where_beam_is_not_installed_that_is_said(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    path = write_corpus(tmp_path / "a.jsonl", DOCUMENTS)
    arguments = ["--input", path, "--tokenizer", tokenizer.path, "--out", tmp_path / "r", "--sequence_length", LENGTH]
    for engine, said in (
        (["beam"], "error: --engine beam: Apache Beam is not here; pip install 'colajax[beam]'"),
        (["spark"], "error: --engine spark: expected local or beam"),
        (["local", "--", "--runner", "x"], "error: --engine local: expected local or beam; flags behind -- are Beam's"),
    ):
        status, _, errors = run("prepare_data", [*map(str, arguments), "--engine", *engine])
        assert (status, errors.count("\n")) == (2, 1), errors
        assert errors.startswith(said)
        assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_says_the_share_the_rate_and_the_time_to_go(folder, tokenizer, tmp_path, monkeypatch, workers):
    """Its lines as a part is done are those that a user would see then."""
    lines, add = [], engines.Progress.add

    def added(progress, part):
        add(progress, part)
        lines.append(progress.line())

    monkeypatch.setattr(parts, "SMALLEST", 7000)
    monkeypatch.setattr(engines.Progress, "add", added)
    metadata = prepare([folder], tokenizer.path, tmp_path / "r", LENGTH, workers=workers)
    number, tokens = len(metadata["source"]), sum(split["tokens"] for split in metadata["splits"].values())
    assert len(lines) == number
    assert re.fullmatch(rf"\d+%, 3 of {number} parts, [\d,]+ tokens, [\d,]+ tokens/s, 0:\d\d:\d\d to go", lines[2])
    assert lines[-1].startswith(f"100%, {number} of {number} parts, {tokens:,} tokens, ")
    assert lines[-1].endswith(" tokens/s, 0:00:00 to go")


def test_progress_is_printed_while_a_part_is_under_way(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr(part_records, "WINDOW_TOKENS", 5000)
    monkeypatch.setattr(part_records, "count", lambda tokens: [engines.count(tokens), time.sleep(0.1)])
    path = write_corpus(tmp_path / "a.jsonl", DOCUMENTS * 3)
    prepare([path], tokenizer.path, tmp_path / "r", LENGTH)
    assert re.search(r"^0%, 0 of 1 parts, [\d,]+ tokens, [\d,]+ tokens/s$", capsys.readouterr().out, re.MULTILINE)


def test_a_part_that_two_have_begun_is_made_by_both(tokenizer, tmp_path, monkeypatch):
    """Of engines that do a part again while somebody may still be at it: the first to end is taken."""
    write_corpus(tmp_path / "a.jsonl", DOCUMENTS)
    jobs, write = [], part_records._write

    def overtaken(job, part, folder):
        if not jobs:
            jobs.append((job, part))
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", os.getppid)  # by another process, which runs
                part_records.prepare_part(job, part)
        return write(job, part, folder)

    prepare([tmp_path / "a.jsonl"], tokenizer.path, tmp_path / "alone", LENGTH)
    monkeypatch.setattr(part_records, "_write", overtaken)
    prepare([tmp_path / "a.jsonl"], tokenizer.path, tmp_path / "r", LENGTH)
    assert jobs
    assert contents(tmp_path / "r") == contents(tmp_path / "alone")
