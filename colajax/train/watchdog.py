"""The end of a run that hangs: a device that does not answer, a collective that some process never comes to, a disk
that blocks. Nothing else would end it, and a pod costs the same whether it moves or not."""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable, Iterator

STARTING = 600  # seconds; in them a process has imported what it needs, and waited five minutes for the others


def start_watched() -> None:
    """Has the supervisor kill a process that is frozen while it starts."""
    _tell_supervisor(STARTING)


def _tell_supervisor(seconds: int) -> str:
    """After how many seconds without a move the process hangs; returns the file of its supervisor, "" without one."""
    alive = os.environ.get("COLAJAX_ALIVE", "")
    if os.path.exists(alive):  # not where a process of another machine has the supervisor
        with contextlib.suppress(OSError), open(alive, "w") as file:
            file.write(f"{seconds}\n")
    return alive


@contextlib.contextmanager
def ended_if_it_hangs(seconds: int) -> Iterator[Callable[[], None]]:
    """Yields what is to be called whenever the run has moved: where that does not come for so many seconds, Python
    prints "Timeout" and where each thread is, on the standard error, and ends the process with status 1, so that its
    supervisor starts it again. It does so from C: what hangs may hold every lock. 0: never.

    launch/supervise.sh looks at a file as well, for a process that cannot even do that."""
    alive = _tell_supervisor(seconds)

    def moved() -> None:
        if seconds > 0:
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
        with contextlib.suppress(OSError):
            os.utime(alive)

    moved()
    try:
        yield moved
    finally:
        faulthandler.cancel_dump_traceback_later()
