"""Scalars for TensorBoard, written by a thread that nothing waits for: a disk that is full or a bucket that is away
costs a picture, and no step."""

import itertools
import os
import sys
import threading
import time
from collections import deque

from colajax.errors import refusal_of, warn
from colajax.files import in_bucket

# tensorboardX imports torch where it finds it, to take its tensors; there are none here, and it takes seconds.
_hidden = "torch" not in sys.modules
if _hidden:
    sys.modules["torch"] = None
from tensorboardX.event_file_writer import EventsWriter  # noqa: E402
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboardX.record_writer import directory_check  # noqa: E402
from tensorboardX.summary import scalar  # noqa: E402

if _hidden:
    del sys.modules["torch"]

EVERY = 20.0  # seconds between two writings
MOST = 100_000  # events that may wait; of more, the oldest are dropped
PATIENCE = 30.0  # seconds that the end of a run waits for the last ones
# An object of a bucket is written whole, again and again, as long as it grows; the next one is begun at this size.
OBJECT_EVENTS = 10_000
_files = itertools.count()


class Board:
    """The event files of a folder. tensorboardX' SummaryWriter is not used: its thread dies of the first error, after
    which whoever adds a value waits for ever."""

    def __init__(self, folder, step: int):
        """step: of what a run goes on from; what the folder has of later ones is not shown any more."""
        self._folder, self._waiting, self._dropped = os.fspath(folder), deque(), 0
        self._in_file = 0  # events
        self._lock, self._wake, self._closed = threading.Lock(), threading.Event(), False
        self._add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._thread = threading.Thread(target=self._work, name="TensorBoard", daemon=True)
        self._thread.start()

    def add(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._add(Event(step=step, summary=scalar(name, value)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        with self._lock:
            self._waiting.append(event)
            if len(self._waiting) > MOST:
                self._waiting.popleft()
                self._dropped += 1

    def flush(self) -> None:
        """Has what there is written now, without waiting for it."""
        self._wake.set()

    def close(self) -> None:
        """Waits for what is still to be written, as long as that is worth it."""
        self._closed = True
        self._wake.set()
        self._thread.join(PATIENCE)
        lost = self._dropped + len(self._waiting)
        if lost:
            warn(f"{self._folder}: {lost:,} values were not written; metrics.jsonl beside it has them")

    def _work(self) -> None:
        file, failed, closing = None, False, False
        while not closing:
            self._wake.wait(EVERY)
            self._wake.clear()
            closing = self._closed  # before the last look at what there is
            with self._lock:
                events, dropped = list(self._waiting), self._dropped
            if not events:
                continue
            try:
                file = self._write(file, events)
                failed = False
            except Exception as error:  # of whatever is behind the path
                if not failed:
                    warn(f"{self._folder}: {refusal_of(error) or repr(error)}; the run goes on, and tries again")
                file, failed = None, True
                continue
            with self._lock:
                for _ in range(len(events) - (self._dropped - dropped)):
                    self._waiting.popleft()

    def _write(self, file: EventsWriter | None, events: list[Event]) -> EventsWriter | None:
        """To the file, or to a new one; returns the one for the next."""
        if file is None:
            directory_check(self._folder)
            # The name that it makes has seconds: two of one second would be one file.
            file, self._in_file = EventsWriter(f"{self._folder}/events", f".{os.getpid()}.{next(_files)}"), 0
        for event in events:
            file.write_event(event)
        file.flush()
        self._in_file += len(events)
        return None if in_bucket(self._folder) and self._in_file > OBJECT_EVENTS else file
