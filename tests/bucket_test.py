"""Every path in a bucket: corpus to import, against the same on local disk; a bucket that fails, in one line."""

import json
import runpy
import signal
import subprocess
import sys
import threading

import echo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from etils import epath
from tiny_runs import ROOT, STOPPED, environment

from colajax.chaos.bucket_server import BUCKET, Requests
from colajax.data.records import Records, read_metadata
from colajax.files import files_under
from colajax.parallel.processes import free_port
from colajax.train.checkpoint import Checkpoints, latest_step
from colajax.train.state import TrainState
from colajax.train.stored import open_arrays

LAST = 12  # steps of stage 1, which saves every 4
STEPS = 8  # of stage 2


def tool(name, *arguments):
    """A command line of tools/, in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def start(stage, workdir, *overrides, stop=None, **more):
    """A process of a training; stop: (signal, at the line of which step, once which file is there)."""
    begin = ["-m", "colajax.train"] if stop is None else ["-c", STOPPED, *map(str, stop)]
    given = [f"--config.{override}" for override in (*tiny_runs.overrides(stage), *overrides)]
    return subprocess.Popen(
        [sys.executable, *begin, "--config", tiny_runs.spec(stage), "--workdir", str(workdir), *given],
        cwd=ROOT, env=environment(1, **more), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(*arguments, status=0, **more):
    process = start(*arguments, **more)
    out, errors = process.communicate()
    assert process.returncode == status, errors[-3000:]
    return out, errors


def stored(workdir, step, part="params"):
    """The arrays of a part of a checkpoint, {path: bytes}."""
    tree = open_arrays(workdir, step, part=part)[1]
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: not isinstance(x, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x).tobytes() for path, x in leaves}


def saved_marker(workdir, step):
    """The file that Orbax writes last."""
    return workdir / "checkpoints" / str(step) / "commit_success.txt"


@pytest.fixture(scope="module")
def corpus(server, records):
    """The records of `records`, from the same stories and tokenizer, prepared in the bucket."""
    source = records.parent
    for name in ("corpus/stories.jsonl", "tokenizer.model"):
        (BUCKET / name).write_bytes((source / epath.Path(name).name).read_bytes())
    tool("prepare_data", "--input", BUCKET / "corpus", "--tokenizer", BUCKET / "tokenizer.model",
         "--out", BUCKET / "records", "--sequence_length", tiny_runs.SEQUENCE_LENGTH,
         "--validation_fraction", 0.2)  # fmt: skip
    return BUCKET / "records"


@pytest.fixture(scope="module")
def stage_one(corpus, records, tmp_path_factory):
    """Killed once checkpoint 4 is whole, and gone on with; beside it, on local disk, one that was left alone."""
    vocabulary = f"vae.vocab_size={read_metadata(corpus)['tokenizer']['vocab_size']}"
    alone = tmp_path_factory.mktemp("alone")
    run("vae", alone, f"records={records}", vocabulary)
    workdir, given = BUCKET / "vae", (f"records={corpus}", vocabulary)
    run("vae", workdir, *given, stop=(9, 6, saved_marker(workdir, 4)), status=-signal.SIGKILL)
    cache = tmp_path_factory.mktemp("cache")
    out, _ = run("vae", workdir, *given, f"records_cache={cache}")  # which may change
    assert "going on from step 4\n" in out
    (copy,) = cache.glob("records-*")
    assert {file.name for file in copy.iterdir()} == {file.name for file in records.iterdir()}
    return workdir, alone


@pytest.fixture(scope="module")
def stage_two(corpus, stage_one):
    """Of two processes."""
    workdir = BUCKET / "joint"
    given = (f"records={corpus}", f"init_from={stage_one[0]}", f"total_steps={STEPS}", "eval_every=8", "eval_rows=8",
             f"vae.vocab_size={read_metadata(corpus)['tokenizer']['vocab_size']}")  # fmt: skip
    cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = [start("joint", workdir, *given, **cluster, JAX_PROCESS_ID=str(i)) for i in range(2)]
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [errors[-3000:] for _, errors in ended]
    assert f"vae from {stage_one[0]}, step {LAST}" in ended[0][0]
    return workdir


def test_records_are_those_of_a_local_folder(corpus, records):
    names = {file.name for file in records.iterdir()}
    assert {file.name for file in files_under(corpus)} == names
    for name in names - {"metadata.json"}:
        assert (corpus / name).read_bytes() == (records / name).read_bytes()
    found, expected = (json.loads((folder / "metadata.json").read_text()) for folder in (corpus, epath.Path(records)))
    (source,), (local,) = found.pop("source"), expected.pop("source")
    assert source == local | {"file": "gs://bucket/corpus/stories.jsonl"}
    assert found.pop("inputs") != expected.pop("inputs")
    assert found == expected
    assert {file.parts[3] for file in files_under(BUCKET)} >= {"corpus", "records", "tokenizer.model"}
    assert not [file for file in files_under(BUCKET) if "tmp-" in str(file) or ".parts" in str(file)]


def test_a_killed_run_goes_on_to_the_bits_of_one_on_local_disk(stage_one):
    workdir, alone = stage_one
    for part in ("params", "opt_state"):
        found, expected = stored(workdir, LAST, part), stored(alone, LAST, part)
        assert expected
        assert found == expected
    assert (workdir / "metrics.jsonl").read_text() == (alone / "metrics.jsonl").read_text()
    assert {path.name for path in workdir.iterdir()} == {path.name for path in alone.iterdir()}
    found, expected = (json.loads((folder / "config.json").read_text()) for folder in (workdir, alone))
    assert {key for key in found if found[key] != expected[key]} <= {"records", "records_cache"}
    # Of the run that was killed there are some if they were on their way: nothing waits for them.
    assert sum(file.name.startswith("events.") for file in files_under(workdir / "tensorboard")) in (1, 2)


def test_two_processes_train_stage_two(stage_one, stage_two):
    lines = [json.loads(line) for line in (stage_two / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert all(np.isfinite(line["loss"]) for line in lines)
    first, frozen = stored(stage_one[0], LAST), stored(stage_two, STEPS, "frozen")
    assert {path.removeprefix("reference/") for path in frozen} < {path.removeprefix("vae/encoder/") for path in first}
    assert all(leaf == first[path.replace("reference/", "vae/encoder/")] for path, leaf in frozen.items())


def test_the_run_is_evaluated_sampled_exported_and_imported_in_the_bucket(stage_two, corpus, capsys):
    tool("evaluate", "--workdir", stage_two, "--records", corpus, "--prefixes", 4)
    result = json.loads((stage_two / "evaluation.json").read_text())
    assert result["step"] == STEPS
    assert len(result["samples"]) == 3
    earlier = min(int(folder.name) for folder in (stage_two / "checkpoints").iterdir() if folder.name.isdecimal())
    assert earlier < STEPS
    tool("evaluate", "--workdir", stage_two, "--records", corpus, "--prefixes", 4, "--step", earlier)
    assert json.loads((stage_two / f"evaluation_{earlier}.json").read_text())["step"] == earlier
    tool("generate", "--workdir", stage_two, "--prompt", "On Tuesday", "--max_new_tokens", 8, "--steps", 2)
    assert "On Tuesday|" in capsys.readouterr().out

    out = BUCKET / "hf"
    tool("export_hf", "--workdir", stage_two, "--out", out)
    assert json.loads((out / "certificate.json").read_text())["passed"]
    (out / "certificate.json").unlink()
    tool("verify_export", "--workdir", stage_two, "--hf", out)
    assert json.loads((out / "certificate.json").read_text())["passed"]
    dit = [f"--config.{override}" for override in tiny_runs.overrides("joint")]
    tool("import_hf", "--hf", out, "--workdir", BUCKET / "imported", "--step", 3, "--config", tiny_runs.spec("joint"),
         *dit)  # fmt: skip
    assert stored(BUCKET / "imported", 3) == stored(stage_two, STEPS)
    assert (BUCKET / "imported" / "tokenizer.model").read_bytes() == (corpus / "tokenizer.model").read_bytes()
    assert not [file for file in files_under(BUCKET) if "tmp-" in str(file) or ".parts" in str(file)]


def test_tasks_are_evaluated_in_a_bucket_and_go_on_there(server, tmp_path):
    """With data from the bucket; killed in the midst of either task."""
    (BUCKET / "tasks").mkdir()
    echo.write_data(BUCKET / "tasks")
    expected = echo.evaluate(BUCKET / "tasks", tmp_path, echo.Echo())
    for dies_in in (2, 6):
        with pytest.raises(echo.Killed):
            echo.evaluate(BUCKET / "tasks", BUCKET / "scores", echo.Echo(dies_in=dies_in))
    last = echo.Echo()
    assert echo.evaluate(BUCKET / "tasks", BUCKET / "scores", last) == expected
    assert len(last.batches) == 4
    local = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert local == {"settings.json", "tasks.json", "tasks.csv", "generations/mmlu.jsonl", "generations/squad.jsonl"}
    for name in local:
        assert (BUCKET / "scores" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_requests_of_records_do_not_grow_with_shards(server, corpus, capsys):
    for count in (1, 16):
        out = BUCKET / f"records{count}"
        rows = Records.open(corpus, "validation").metadata["splits"]["validation"]["rows"]
        tool("prepare_data", "--input", BUCKET / "corpus", "--tokenizer", BUCKET / "tokenizer.model", "--out", out,
             "--sequence_length", tiny_runs.SEQUENCE_LENGTH, "--validation_fraction", 0.2,
             "--rows_per_shard", -(-rows // count))  # fmt: skip
    counts = {}
    for count in (1, 16):
        with Requests(server) as opening:
            opened = Records.open(BUCKET / f"records{count}", "validation")
        counts[len(opened.metadata["splits"]["validation"]["shards"])] = opening.count
    with capsys.disabled():
        print(f"\nrequests of opening a split, by shards: {counts}")
    assert len(counts) == 2
    assert max(counts.values()) <= 20


def refused(capsys, name, *arguments):
    """The line with which a tool ends."""
    with pytest.raises(SystemExit) as ended:
        tool(name, *arguments)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert len(lines) == 1, lines
    return lines[0]


PREPARING = ("--sequence_length", tiny_runs.SEQUENCE_LENGTH, "--validation_fraction", 0.2)


def test_no_such_bucket(server, corpus, records, capsys):
    text, tokenizer = records.parent / "stories.jsonl", records.parent / "tokenizer.model"
    given = ("--input", text, "--tokenizer", tokenizer, *PREPARING)
    line = refused(capsys, "prepare_data", *given, "--out", "gs://nowhere/records")
    assert "gs://nowhere/records" in line
    assert "gs://nowhere/run: no run there" in refused(
        capsys, "generate", "--workdir", "gs://nowhere/run", "--prompt", "x"
    )
    _, errors = run("vae", "gs://nowhere/run", f"records={corpus}", status=2)
    assert last_line(errors).startswith("error: gs://nowhere/run/lease.json: no such bucket or object")


def last_line(errors):
    assert "Traceback" not in errors, errors[-3000:]
    return errors.splitlines()[-1]


def test_a_bucket_that_may_only_be_read(server, corpus, records, capsys):
    server.mode = "read_only"
    try:
        text, tokenizer = records.parent / "stories.jsonl", records.parent / "tokenizer.model"
        line = refused(capsys, "prepare_data", "--input", text, "--tokenizer", tokenizer, *PREPARING, "--out",
                       BUCKET / "refused")  # fmt: skip
        assert "gs://bucket/refused" in line
        assert "Forbidden" in line
        _, errors = run("vae", BUCKET / "refused", f"records={corpus}", status=2)
        expected = "error: gs://bucket/refused/lease.json: these credentials may not do this"
        assert last_line(errors).startswith(expected)
    finally:
        server.mode = "pass"
    assert not [file for file in files_under(BUCKET) if "refused" in str(file)]


def test_without_credentials(server, capsys):
    server.mode = "anonymous"
    try:
        line = refused(capsys, "generate", "--workdir", BUCKET / "joint", "--prompt", "x")
    finally:
        server.mode = "pass"
    assert line.startswith("error: gs://bucket/joint: ")
    assert "not without credentials; gcloud auth application-default login" in line


def test_ten_seconds_of_503_are_waited_out(server, corpus):
    state = TrainState(jnp.int32(1), {"w": jnp.ones((4, 4))}, {}, {})
    checkpoints = Checkpoints(BUCKET / "waited", keep_every=1)
    opened = []
    server.mode = "unavailable"
    threading.Timer(10, lambda: setattr(server, "mode", "pass")).start()
    try:
        reading = threading.Thread(target=lambda: opened.append(Records.open(corpus, "validation")[0]))
        reading.start()
        checkpoints.save(state, {})
        checkpoints.close()
        reading.join()
    finally:
        server.mode = "pass"
    assert latest_step(BUCKET / "waited") == 1
    assert len(opened) == 1
    assert sum("waited" in path for _, path in server.log) > 0
