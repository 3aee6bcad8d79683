"""A training under its supervisor, as somebody sees it who means harm: its process, its output, its folder."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from colajax.errors import UserError

SUPERVISOR = Path(__file__).parent.parent.parent / "launch" / "supervise.sh"
POLL = 0.002  # seconds


class Trainer:
    """`bash launch/supervise.sh COMMAND`, started in a session of its own; its output goes to WORKDIR.log."""

    def __init__(self, command: list[str], workdir: Path, checkpoints: str, disk: int | None = None):
        """command: in which {workdir} stands for the workdir; checkpoints: the folder in it; disk: megabytes of a disk
        that the workdir is to have to itself. Raises UserError where there can be none."""
        self._command = [word.replace("{workdir}", str(workdir)) for word in command]
        self.workdir, self.checkpoints = workdir, workdir / checkpoints
        self.log, self._mounted = workdir.with_suffix(".log"), False
        if disk:
            self._mount(disk)
        self.start()

    def _mount(self, megabytes: int) -> None:
        self.workdir.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(self.workdir)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{self.workdir}: cannot be a disk of its own ({done.stderr.strip()}); root can mount one")
        self._mounted = True

    def start(self) -> None:
        """Also again, after the supervisor has ended."""
        with self.log.open("ab") as out:
            self._supervisor = subprocess.Popen(
                ["bash", str(SUPERVISOR), *self._command], start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        """How the supervisor ended; None while it runs."""
        return self._supervisor.poll()

    def processes(self) -> list[int]:
        """Those that train."""
        wanted = b"\0".join(word.encode() for word in self._command) + b"\0"
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    same = os.getsid(int(folder.name)) == self._supervisor.pid
                    if same and (folder / "cmdline").read_bytes() == wanted:
                        found.append(int(folder.name))
                except (ProcessLookupError, FileNotFoundError):
                    continue
        return sorted(found)

    def send(self, number: int) -> bool:
        """Sends a signal to the training; whether there was one to send it to."""
        sent = False
        for process in self.processes():
            try:
                os.kill(process, number)
                sent = True
            except ProcessLookupError:
                continue
        return sent

    def wait_for(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Until it holds, the supervisor has ended or so many seconds are over; whether it holds."""
        until = time.monotonic() + seconds
        while not (found := holds()) and self.status is None and time.monotonic() < until:
            time.sleep(POLL)
        return found

    def saved(self) -> list[Path]:
        """The checkpoints that have their name, the oldest first."""
        folders = self.checkpoints.iterdir() if self.checkpoints.is_dir() else []
        return sorted((path for path in folders if path.name.isdecimal()), key=lambda path: int(path.name))

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return self.checkpoints.is_dir() and any("tmp" in path.name for path in self.checkpoints.iterdir())

    def end(self) -> None:
        """Of everything, at once."""
        for _ in range(100):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._supervisor.pid, signal.SIGKILL)
            if not self.send(signal.SIGKILL) and self.status is not None:
                return
            time.sleep(0.05)

    def clear(self) -> None:
        """Removes the workdir."""
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.workdir)], check=False)
        shutil.rmtree(self.workdir, ignore_errors=True)

    def lost_steps(self) -> int:
        """The most steps that one start did again."""
        lost, last = 0, 0
        for line in self.log.read_text(errors="replace").splitlines():
            if found := re.search(r"\bstep (\d+)/\d+", line):
                last = int(found[1])
            elif found := re.search(r"going on from step (\d+)", line):
                lost = max(lost, last - int(found[1]))
                last = int(found[1])
            elif "supervise.sh: ended" in line and "without a checkpoint" in line:
                lost, last = max(lost, last), 0
        return lost
