"""System calls by which a training saves, and its death at one of them: strace counts them, and kills."""

import functools
import random
import re
import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from colajax.chaos.circumstances import Given
from colajax.chaos.subject import Subject
from colajax.chaos.trainer import remove
from colajax.errors import UserError

CALLS = (
    "mkdir,mkdirat,open,openat,creat,write,pwrite64,writev,pwritev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,"
    "link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir"
)
STRACE = ("strace", "--follow-forks", "--quiet=all")
# With --seccomp-bpf other calls cost no time, but strace 6.1 injects no signals.
COUNTING = (*STRACE, "--seccomp-bpf", "--decode-fds=path", "--string-limit=0")
# sh -c ONCE FOLDER STRACE ... -- COMMAND: so the first time, COMMAND alone where the folder is there.
ONCE = 'if mkdir "$0" 2>/dev/null; then exec "$@"; fi; while [ "$1" != -- ]; do shift; done; shift; exec "$@"'

_COUNTED = threading.Lock()


def at_a_call(subject: Subject, rng: random.Random, name: Path) -> Given:
    """One that SIGKILL meets as it enters a system call by which it saves: the n-th call of that name in any thread."""
    with _COUNTED:
        calls = _calls_of(subject, name.parent)
    call = rng.choice(sorted(calls))
    number = rng.choice(calls[call])
    killed = (*STRACE, "--output=/dev/null", f"--trace={call}", f"--inject={call}:signal=KILL:when={number}", "--")
    began = Path(f"{name}-began")
    remove(began)  # of a trial that was interrupted
    tried = subject._replace(prefix=("sh", "-c", ONCE, str(began), *killed))
    return Given(tried, subject, f"{call} {number} of a thread, ")


@functools.cache
def _calls_of(subject: Subject, folder: Path) -> dict[str, list[int]]:
    """See `calls_under`; of one that is left alone but for strace."""
    if not shutil.which("strace"):
        raise UserError("fault call: needs strace; install it (Debian: apt-get install strace), or leave it out")
    log = folder / "calls"
    trainer = subject._replace(prefix=(*COUNTING, f"--output={log}", f"--trace={CALLS}", "--")).start(folder, "traced")
    try:
        trainer.wait_for(lambda: False, 3600.0)
    finally:
        trainer.end()
    with log.open(errors="replace") as lines:
        calls = calls_under(str(trainer.checkpoints), lines)
    if trainer.status or not calls:
        raise UserError(f"{trainer.log}: under strace the command ended with status {trainer.status}, or saved nothing")
    return calls


def calls_under(folder: str, lines: Iterable[str]) -> dict[str, list[int]]:
    """{name: [n, ...]} of the calls about a path in the folder, as the n-th of that name that their thread made; lines:
    strace's, of all threads, with the paths of descriptors."""
    made, found = defaultdict(Counter), defaultdict(set)
    for line in lines:
        if begun := re.match(r"(\d+) +(\w+)\(", line):  # not what is resumed
            thread, call = begun.groups()
            made[thread][call] += 1
            if f"{folder}/" in line:
                found[call].add(made[thread][call])
    return {call: sorted(numbers) for call, numbers in found.items()}
