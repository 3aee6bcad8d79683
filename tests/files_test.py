"""What is there whole or not at all: against killed, running and foreign writers, and blocks that fail."""

import os
import socket
import subprocess
import sys

import pytest
from etils import epath

from colajax.errors import UserError
from colajax.files import check_writable, read_json, whole, write_whole

NAMES = ["run", "run[1]", "a*b?", "[!x]"]


@pytest.fixture(scope="module")
def ended():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("name", NAMES)
def test_what_ended_processes_of_this_machine_left_is_cleared_and_nothing_else(name, ended, tmp_path):
    host = socket.gethostname()
    kept = {f"{name}.tmp-{host}-{os.getppid()}", f"{name}.tmp-elsewhere-{ended}", f"{name}.tmp-{host}-x", "other"}
    left = {f"{name}.tmp-{host}-{ended}", f"{name}.tmp-{host}-{os.getpid()}"}
    for folder in kept | left:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("half")
    with whole(tmp_path / name) as partial:
        assert {path.name for path in tmp_path.iterdir()} == kept
        partial.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == kept | {name}
    assert (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize("name", NAMES)
def test_a_block_that_fails_leaves_what_was_there(name, tmp_path):
    write_whole(tmp_path / name, "old")

    def fail():
        with whole(tmp_path / name) as partial:
            partial.mkdir()
            (partial / "file").write_text("half")
            raise RuntimeError("fails")

    with pytest.raises(RuntimeError, match="fails"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


def test_a_folder_takes_no_place_that_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("old")

    def write():
        with whole(tmp_path / "run") as partial:
            partial.mkdir()
            (partial / "file").write_text("new")

    with pytest.raises(OSError, match="run"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "file").read_text() == "old"


def test_a_place_that_can_be_written_is_as_it_was(tmp_path):
    (tmp_path / "file").write_text("old")
    for place in ("file", "new", "deep/below/new"):
        check_writable(tmp_path / place)
    with pytest.raises(OSError, match=r"cannot be written.*file/below"):
        check_writable(tmp_path / "file" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected JSON; copy it again"),
        ("[1]", "expected a JSON object with a, b"),
        ('{"a": 1}', "expected a JSON object with b"),
        ("[" * 100_000, "expected JSON"),
    ],
)
def test_a_file_that_lacks_what_is_read_is_named(content, message, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_json(epath.Path(tmp_path) / "x.json", "a", "b")
    assert str(error.value).startswith(f"{tmp_path}/x.json: damaged")
    assert "\n" not in str(error.value)
