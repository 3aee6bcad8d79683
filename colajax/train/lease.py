"""One trainer a workdir: a file there that says which, renewed while it trains."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from colajax.errors import UserError, tell
from colajax.files import process_runs, write_whole
from colajax.parallel.processes import is_first

FILE = "lease.json"
EVERY = 20.0  # seconds between two renewals
DEAD = 90.0  # seconds without one, after which whoever holds it is taken for dead
SOON = 1.0  # seconds between two looks at what another holds


class Lease:
    """Of the process that writes. Clocks of several machines are not compared: whether another lives is seen by whether
    it renews."""

    def __init__(self, workdir: epath.Path):
        self._path, self._renewals = workdir / FILE, 0
        self._mine = {"host": socket.gethostname(), "process": os.getpid(), "token": uuid.uuid4().hex}

    def take(self) -> None:
        """Raises UserError where another trains; of one that may have been killed, on another machine, it waits for a
        sign."""
        held = self._read()
        contended = held is not None and not self._is_dead(held)
        if contended:
            tell(f"{self._path}: of {_who(held)}; waiting {DEAD:.0f} s for a sign of it")
            until = time.monotonic() + DEAD
            while time.monotonic() < until and (now := self._read()) is not None:
                if now != held:
                    raise UserError(f"{self._path}: {_who(now)} is training in this workdir; use another --workdir")
                time.sleep(SOON)
        self._renew()
        if contended:  # another may have waited as long
            time.sleep(SOON)
            self.check()

    def check(self) -> None:
        """Raises UserError where another has taken it, as from a process that was frozen."""
        held = self._read()
        if held is None or held["token"] != self._mine["token"]:
            who = "it is gone" if held is None else f"{_who(held)} has taken it"
            raise UserError(f"{self._path}: {who}; this process ends, so that two do not write into one workdir")

    def _read(self) -> dict | None:
        try:
            found = json.loads(self._path.read_bytes())
            return found if {"host", "process", "token"} <= found.keys() else None
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError):  # of one that was cut, which nobody renews
            return None

    def _renew(self) -> None:
        self._renewals += 1
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_whole(self._path, json.dumps(self._mine | {"renewals": self._renewals, "time": now}) + "\n")

    def _is_dead(self, held: dict) -> bool:
        """A process of this machine that runs no more; a container that is started again has its name and numbers."""
        here = held["host"] == self._mine["host"]
        return here and (held["process"] == os.getpid() or not process_runs(held["process"]))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Renews it, once taken, as long as the block runs; in the first process."""
        if not is_first():
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._keep, args=(ended,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(EVERY)
            with contextlib.suppress(Exception):
                self.check()
                self._path.unlink()

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(EVERY):
            with contextlib.suppress(Exception):  # of a disk that is full or a bucket that is away: the next one may do
                self.check()
                self._renew()


def _who(held: dict) -> str:
    return f"process {held['process']} on {held['host']}"
