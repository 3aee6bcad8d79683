"""Every command line on what the outside does to it: environment, signals, what the libraries say of a bucket
(damaged_test.py: damaged files).

Asserted of each: no traceback; status 0 or 2; with 2 one line that names the thing, and nothing left behind.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import aiohttp
import fsspec.exceptions
import google.auth.exceptions
import pytest
import requests.exceptions
from tiny_runs import ROOT, spec

from colajax.errors import TryAgain, UserError, refusal_of
from colajax.parallel.processes import join


def start(*arguments, stdin=None, **environment) -> subprocess.Popen:
    """A command line as a process: "-m colajax.train" or "tools/NAME.py", and what it is given."""
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="surrogateescape",
    )  # fmt: skip


def refused(process) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.startswith("error: "), errors
    assert errors.count("\n") == 1, errors
    return errors


# ---- the environment -------------------------------------------------------------------------------------------------
def train(tmp_path, **environment):
    given = ("--config", spec("vae"), "--workdir", str(tmp_path / "run"), "--config.records=none")
    return start("-m", "colajax.train", *given, **environment)


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_here(platform, tmp_path):
    assert f"JAX_PLATFORMS={platform}" in refused(train(tmp_path, JAX_PLATFORMS=platform))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":80", "localhost:high", "localhost:99999"])
def test_a_coordinator_without_a_port(address, monkeypatch):
    for name, value in (("COORDINATOR_ADDRESS", address), ("NUM_PROCESSES", "2"), ("PROCESS_ID", "0")):
        monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(UserError, match="expected host:port"):
        join()


def test_a_coordinator_whose_port_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
        assert f"cannot listen at port {port}" in refused(train(tmp_path, **cluster))


# ---- signals ---------------------------------------------------------------------------------------------------------
# A command line that tells when it has begun to import, and does so for long.
IMPORTING = """
import time
from colajax.command_line import begin
begin()
print("importing", flush=True)
time.sleep(60)
"""
# One whose work is under way, with something to clear away.
WORKING = """
import sys, time
from colajax.errors import run_main
from colajax.files import whole
def main():
    with whole(sys.argv[1]) as partial:
        partial.write_text("half")
        print("working", flush=True)
        time.sleep(60)
run_main(main)
"""


@pytest.mark.parametrize(
    ("program", "number", "status", "line"),
    [
        (IMPORTING, signal.SIGINT, 130, "interrupted\n"),
        (WORKING, signal.SIGINT, 130, "interrupted\n"),
        (WORKING, signal.SIGTERM, 143, "terminated\n"),
    ],
)
def test_a_signal_ends_a_command_in_one_line_with_nothing_left_behind(program, number, status, line, tmp_path):
    process = start("-c", program, str(tmp_path / "out"))
    process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["numpy", "jaxlib", "array_record", "config.json"])
def test_a_training_interrupted_before_its_loop(moment, records, tmp_path):
    """While Python imports a library, and when the run has its folder and compiles."""
    given = ("--config", spec("vae"), "--workdir", str(tmp_path / "run"), f"--config.records={records}")
    process = start("-m", "colajax.train", *given, "--config.sequence_length=32", "--config.max_epochs=0")
    loaded = Path(f"/proc/{process.pid}/maps")
    while moment not in loaded.read_text() and not (tmp_path / "run" / "config.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_output_that_nobody_reads_any_more():
    program = "from colajax.errors import run_main\nrun_main(lambda: print(input()))"
    process = start("-c", program, stdin=subprocess.PIPE)
    process.stdout.close()
    process.stdin.write("a line\n")
    process.stdin.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (141, "")


# ---- buckets ---------------------------------------------------------------------------------------------------------
HOST = types.SimpleNamespace(host="storage.googleapis.com", port=443, ssl=True)
# What each client raises where no whole answer comes: those that gcsfs tries again, and when it has given up.
UNANSWERED = [
    aiohttp.ClientConnectorError(HOST, OSError(111, "Connect call failed")),
    aiohttp.ServerDisconnectedError(), aiohttp.ClientPayloadError("Response payload is not completed"),
    aiohttp.ClientOSError(104, "Connection reset by peer"), aiohttp.SocketTimeoutError("Timeout on reading data"),
    requests.exceptions.ConnectionError("('Connection aborted.', RemoteDisconnected())"),
    requests.exceptions.ReadTimeout("HTTPConnectionPool: Read timed out."),
    requests.exceptions.ChunkedEncodingError("IncompleteRead(0 bytes read)"), fsspec.exceptions.FSTimeoutError(),
    google.auth.exceptions.TransportError("Failed to retrieve a token from the metadata server"),
]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("Forbidden: https://x/upload/storage/v1/b/a/o?name=run%2Fx\nno access"), "gs://a/run/x: these cred"),
        (ValueError("NOT_FOUND: Error writing gs://a/x [http_response_code='404']"), "gs://a/x: no such bucket"),
        (RuntimeError("with a last message of Not Found ; reading gs://a/x; at byte 0"), "gs://a/x: no such bucket"),
        (RuntimeError("Service Unavailable ; reading gs://a/x"), "gs://a/x: the server is not available"),
        *((error, "a bucket: cannot be reached from here") for error in UNANSWERED),
        (ValueError("gs://a/x: a bug"), None),
        (KeyError("b/a/o"), None),
    ],
)  # fmt: skip
def test_what_the_libraries_say_of_a_bucket_is_one_line(error, expected):
    with pytest.raises(type(error)) as caught:
        raise error
    found = refusal_of(caught.value)
    assert found is None if expected is None else str(found).startswith(expected)
    passes = expected is not None and ("cannot be reached" in expected or "not available" in expected)
    assert isinstance(found, TryAgain) == passes
