"""A training under its supervisor, as somebody sees it who means harm: its processes, its output, its folder."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from etils import epath

from colajax.errors import UserError
from colajax.files import in_bucket
from colajax.parallel.processes import ADDRESS, COUNT, INDEX, free_port

SUPERVISOR = Path(__file__).parent.parent.parent / "launch" / "supervise.sh"
POLL = 0.002  # seconds
STOPPED = 128 + signal.SIGTERM

_running: set["Trainer"] = set()


def end_all() -> None:
    """Of every training that runs, at once."""
    for trainer in list(_running):
        trainer.end()


def remove(folder: Path) -> None:
    """A folder, and the disk that was mounted there."""
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=False)
    shutil.rmtree(folder, ignore_errors=True)


class Trainer:
    """`bash launch/supervise.sh COMMAND`, once a process, as on so many hosts; each in a session of its own. The output
    of all goes to `log`."""

    def __init__(
        self, command: Sequence[str], workdir: epath.Path, log: Path, checkpoints: str, *,
        prefix: Sequence[str] = (), processes: int = 1, disk: int | None = None,
    ):  # fmt: skip
        """command: in which {workdir} stands for the workdir; checkpoints: the folder in it; prefix: what is before the
        command; disk: megabytes of a disk that the workdir is to have to itself. Raises UserError where there can be
        none."""
        self._prefix = prefix
        self._command = [word.replace("{workdir}", os.fspath(workdir)) for word in command]
        self.workdir, self.checkpoints, self.log = workdir, workdir / checkpoints, log
        self.restarts_stopped = False  # whether a process that ended with status 143 is started again
        if disk:
            self._mount(disk)
        self._address = f"localhost:{free_port()}"
        self._supervisors = [self._start(index, processes) for index in range(processes)]
        _running.add(self)

    def _mount(self, megabytes: int) -> None:
        self.workdir.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(self.workdir)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{self.workdir}: cannot be a disk of its own ({done.stderr.strip()}); root can mount one")

    def _start(self, index: int, count: int) -> subprocess.Popen:
        cluster = {ADDRESS: self._address, COUNT: str(count), INDEX: str(index)} if count > 1 else {}
        with self.log.open("ab") as out:
            return subprocess.Popen(
                ["bash", str(SUPERVISOR), *self._prefix, *self._command], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=os.environ | cluster,
            )  # fmt: skip

    @property
    def count(self) -> int:
        """Of processes."""
        return len(self._supervisors)

    @property
    def status(self) -> int | None:
        """How the supervisors ended, the first that did not end well; None while one runs."""
        ends = [supervisor.poll() for supervisor in self._supervisors]
        return None if None in ends else next((end for end in ends if end), 0)

    @property
    def one_ended(self) -> bool:
        """Whether a supervisor has."""
        return any(supervisor.poll() is not None for supervisor in self._supervisors)

    @property
    def restarts(self) -> int:
        """How often a supervisor has seen the training end, and is to start it again."""
        return self.log.read_text(errors="replace").count("supervise.sh: ended with")

    def _processes(self, index: int) -> list[int]:
        """Those that train, of one supervisor, and what traces them."""
        wanted = b"\0".join(word.encode() for word in self._command) + b"\0"
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    same = os.getsid(int(folder.name)) == self._supervisors[index].pid
                    words = (folder / "cmdline").read_bytes()
                    if same and words.endswith(wanted) and os.fsencode(SUPERVISOR) not in words:
                        found.append(int(folder.name))
                except (ProcessLookupError, FileNotFoundError):
                    continue
        return found

    def send(self, number: int, index: int = 0) -> bool:
        """Sends a signal to the training of one supervisor; whether there was one to send it to."""
        sent = False
        for process in self._processes(index):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
                sent = True
        return sent

    def wait_for(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Until it holds, the supervisors have ended or so many seconds are over; whether it holds."""
        until = time.monotonic() + seconds
        while True:
            if self.restarts_stopped:
                self._restart_stopped()
            if (found := holds()) or self.status is not None or time.monotonic() > until:
                return found
            time.sleep(POLL)

    def _restart_stopped(self) -> None:
        for index, supervisor in enumerate(self._supervisors):
            if supervisor.poll() == STOPPED:
                self._supervisors[index] = self._start(index, self.count)

    def saved(self) -> list[epath.Path]:
        """The checkpoints that have their name, STEP or checkpoint-STEP, the oldest first."""
        folders = self.checkpoints.iterdir() if self.checkpoints.is_dir() else []
        steps = {path: path.name.rpartition("-")[2] for path in folders if "tmp" not in path.name}
        return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return self.checkpoints.is_dir() and any("tmp" in path.name for path in self.checkpoints.iterdir())

    def end(self) -> None:
        """Of everything, at once."""
        for _ in range(100):
            sent = False
            for index, supervisor in enumerate(self._supervisors):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(supervisor.pid, signal.SIGKILL)
                sent = self.send(signal.SIGKILL, index) or sent
            if not sent and self.status is not None:
                break
            time.sleep(0.05)
        _running.discard(self)

    def clear(self) -> None:
        """Removes the workdir."""
        if in_bucket(self.workdir):
            self.workdir.rmtree()
        else:
            remove(Path(self.workdir))

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
