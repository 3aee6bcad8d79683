"""The steps of a ladder, as commands: what is done, what is next, and their run in sequence on this machine."""

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from etils import epath

from colajax.errors import UserError
from colajax.evals.tasks.report import REPORT, folder_of
from colajax.files import in_bucket, read_json
from colajax.scaling.ladder import Ladder, Run
from colajax.train.checkpoint import latest_step


class Step(NamedTuple):
    run: str  # its name; "data" before all runs
    what: str
    command: tuple[str, ...]
    done: bool


def training_command(run: Run) -> tuple[str, ...]:
    """As any machine takes it that has the repository for its working directory."""
    given = (f"--config.{override}" for override in run.overrides)
    return ("-m", "colajax.train", "--config", run.member.config, "--workdir", run.workdir, *given)


def evaluation_command(run: Run, step: int, tasks: str) -> tuple[str, ...]:
    """Of the checkpoint at a budget; tasks: the folder of their files."""
    return (
        "tools/evaluate.py", "--workdir", run.workdir, "--step", str(step), "--tasks", "all", "--data", tasks,
        *(argument.replace("@", tasks) for argument in run.sampling),
    )  # fmt: skip


def evaluated(run: Run, step: int) -> bool:
    return _report(run, step).exists()


def steps_of(ladder: Ladder, runs: list[Run], folder: str, data: Mapping[str, str]) -> Iterator[Step]:
    """Everything in order; `done` is read off the disk as one comes to it."""
    for made, command in ladder.data:
        path = Path(made.replace("@", folder))
        if path.name not in data:
            yield Step("data", path.name, tuple(shlex.split(command.replace("@", folder))), path.exists())
    tasks = data.get("tasks") or f"{folder}/tasks"
    for run in runs:
        reached = latest_step(run.workdir) or 0
        yield Step(run.name, f"training to step {run.total_steps}", training_command(run), reached >= run.total_steps)
        for step in run.budgets:
            command = evaluation_command(run, step, tasks)
            yield Step(run.name, f"tasks at step {step}", command, evaluated(run, step))


def status(run: Run) -> str:
    """One line."""
    reached = latest_step(run.workdir) or 0
    tokens = f"step {reached:,}/{run.total_steps:,}"
    if not run.budgets:
        state = "trained" if reached >= run.total_steps else "" if reached else "waits"
        return f"{run.name:<24}{tokens:<22}{state}".rstrip()
    done = [step for step in run.budgets if evaluated(run, step)]
    mean = f", mean {_mean(run, done[-1]):.1%} at step {done[-1]:,}" if done else ""
    state = "done" if len(done) == len(run.budgets) else "" if reached else "waits"
    return f"{run.name:<24}{tokens:<22}{len(done)} of {len(run.budgets)} budgets evaluated{mean}  {state}".rstrip()


def _mean(run: Run, step: int) -> float:
    return read_json(_report(run, step), "mean")["mean"]["accuracy"]


def _report(run: Run, step: int) -> epath.Path:
    return folder_of(run.workdir, step) / REPORT


def run_ladder(ladder: Ladder, runs: list[Run], folder: str, data: Mapping[str, str], root: Path) -> None:
    """Does what is not done yet, one command after the other, each with its output in FOLDER/logs. Whenever it is
    stopped or killed, the next call goes on: with what an earlier one may have left running, once that has ended.

    Raises UserError where a command ends with another status than 0."""
    if in_bucket(folder):
        raise UserError(f"--root {folder}: expected a folder of this machine; plan prints what to launch elsewhere")
    by_name = {run.name: run for run in runs}
    Path(folder, "logs").mkdir(parents=True, exist_ok=True)
    with _alone(Path(folder)) as lock:
        remaining = [step.run for step in steps_of(ladder, runs, folder, data) if not step.done]
        for step in steps_of(ladder, runs, folder, data):
            if step.done:
                continue
            began, log = time.monotonic(), Path(folder, "logs", f"{step.run}.log")
            print(f"{step.run:<24}{step.what} ...", flush=True)
            code = _finished(step.command, log, root, lock)
            if code:
                raise UserError(f"{step.run}: {step.what} ended with status {code} ({_last_line(log)}); see {log}")
            print(f"{step.run:<24}{step.what}: {time.monotonic() - began:.0f} s", flush=True)
            remaining.remove(step.run)
            if step.run in by_name and step.run not in remaining:
                print(status(by_name[step.run]), flush=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Yields a file that is locked as long as this process lives, or one that it started and that has inherited it."""
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is at it; waiting for it to end", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _finished(command: tuple[str, ...], log: Path, root: Path, lock: int) -> int:
    """The status of a Python command that has run to its end in the repository's root."""
    path = filter(None, (str(root), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    with open(log, "ab") as output:
        output.write(f"\n$ python {shlex.join(command)}\n".encode())
        output.flush()
        child = subprocess.Popen(
            [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, cwd=root, env=environment,
            pass_fds=(lock,), start_new_session=True,  # or Ctrl-C would reach it too, and then terminate below
        )  # fmt: skip
    try:
        return child.wait()
    except BaseException:  # Ctrl-C, SIGTERM: a training saves
        child.terminate()
        child.wait()
        raise


def _last_line(log: Path) -> str:
    return next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")[:300]
