"""TensorBoard's files, read back by a reader of their format that is written out here; full disks, files that hang."""

import errno
import struct
import threading

import pytest
from tensorboardX.proto.event_pb2 import Event

from colajax.train import board
from colajax.train.board import Board


def events_of(folder) -> list[Event]:
    """The format: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    found = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def scalars_of(folder) -> list[tuple[int, str, float]]:
    return [(event.step, value.tag, value.simple_value) for event in events_of(folder) for value in event.summary.value]


def expected(steps) -> list[tuple[int, str, float]]:
    return [(step, name, value) for step in steps for name, value in (("a", step / 2), ("b", 1.0))]


def test_what_is_added_is_there(tmp_path):
    first = Board(tmp_path / "b", 0)
    for step in range(1, 500):
        first.add(step, {"a": step / 2, "b": 1.0})
    first.close()
    second = Board(tmp_path / "b", 400)  # a run that goes on from there, in the same second
    second.add(401, {"a": 7.0})
    second.close()
    assert scalars_of(tmp_path / "b") == [*expected(range(1, 500)), (401, "a", 7.0)]
    starts = [event.step for event in events_of(tmp_path / "b") if event.HasField("session_log")]
    assert starts == [1, 401]  # TensorBoard leaves out what came before of these steps


def test_a_full_disk_is_said_once_and_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(board, "EVERY", 0.01)
    failures, flush, tried = [3], board.EventsWriter.flush, threading.Event()

    def full(self):
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device", "events")
        flush(self)
        tried.set()

    monkeypatch.setattr(board.EventsWriter, "flush", full)
    written = Board(tmp_path / "b", 0)
    written.add(1, {"a": 0.5, "b": 1.0})
    assert tried.wait(30)
    written.add(2, {"a": 1.0, "b": 1.0})
    written.close()
    said = capsys.readouterr().err
    assert said.count("No space left on device") == said.count("\n") == 1
    assert set(scalars_of(tmp_path / "b")) == set(expected((1, 2)))


@pytest.mark.parametrize("bound", [100, 5])
def test_a_file_that_hangs_costs_nothing_but_its_values(tmp_path, monkeypatch, capsys, bound):
    """As one on a network does whose server is gone; of what waits for it the newest are kept."""
    monkeypatch.setattr(board, "EVERY", 0.01)
    monkeypatch.setattr(board, "PATIENCE", 0.1)
    monkeypatch.setattr(board, "MOST", bound)
    hanging, stuck, flush = threading.Event(), threading.Event(), board.EventsWriter.flush

    def hang(self):
        stuck.set()
        hanging.wait()
        flush(self)

    monkeypatch.setattr(board.EventsWriter, "flush", hang)
    written = Board(tmp_path / "b", 0)
    assert stuck.wait(30)
    for step in range(1, 11):
        written.add(step, {"a": 1.0, "b": 2.0})
    written.close()
    assert "21 values were not written" in capsys.readouterr().err  # and the event of the start
    hanging.set()
    written._thread.join()
    kept = [step for step, _, _ in scalars_of(tmp_path / "b")]
    assert kept == ([step for step in range(1, 11) for _ in "ab"] if bound == 100 else [8, 9, 9, 10, 10])
