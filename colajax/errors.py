"""The one exception for a user's mistake, and how a command line ends: on it, on what the outside does, on a signal."""

import errno
import os
import re
import signal
import sys
import traceback
import urllib.parse
from collections.abc import Callable
from typing import TextIO

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk


class UserError(Exception):
    """Something the user can mend.

    The message is one line: the file, record or config key, what was expected, and what to do.
    """

    status = 2  # of a command that ends on it


class TryAgain(UserError):
    """Something that time may mend: a supervisor is to start the command again."""

    status = 75  # EX_TEMPFAIL of sysexits.h


def tell(line: str, stream: TextIO | None = None) -> None:
    """Prints a line; a disk that is full, to which the output goes, is no reason to end."""
    try:
        print(line, file=stream or sys.stdout, flush=True)
    except OSError as error:
        if error.errno not in (*FULL, errno.EFBIG):
            raise


def warn(line: str) -> None:
    """Tells of what went wrong and was dealt with."""
    tell(f"WARNING: {line}", sys.stderr)


class _Terminated(BaseException):
    """SIGTERM came: raised so that what is unfinished is cleared away, as after Ctrl-C."""


def run_main(main: Callable[[], None]) -> None:
    """Runs a command line to its end, without a traceback where the program itself is not at fault.

    One line "error: ..." and status 2 for a UserError and for what files, memory and devices refuse, 75 where time may
    mend it; 130 and 143 after SIGINT and SIGTERM; 141 where nobody reads the output any more. Any other exception is a
    bug and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character must not end the run
        stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell does with what runs in its background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _check_arguments(sys.argv[1:])
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except _Terminated:
        _end("terminated", 143)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush fails again
        sys.exit(141)
    except Exception as error:
        refused = refusal_of(error)
        if refused is None:
            raise
        _end(f"error: {refused}", refused.status)
    finally:
        end_at_once_on_interrupt()


def end_at_once_on_interrupt() -> None:
    """Has Ctrl-C end the process with one line, for when there is nothing to clear away: while Python imports, and
    while it ends."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def refusal_of(error: BaseException) -> UserError | None:
    """The one line on an exception by which a file, a bucket, memory or a device refuses, as a UserError (a TryAgain
    where time may mend it); a UserError itself; None for any other."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.strerror and not _of_a_bucket_library(error):
        file = os.fsdecode(error.filename) if error.filename else _file_of(error)
        kind = TryAgain if error.errno in FULL else UserError
        return kind(f"{file}: {error.strerror}" if file else error.strerror)
    if isinstance(error, MemoryError):
        return UserError("out of memory" + (f" ({text})" if text else ""))
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return UserError(f"out of memory ({text[:300]}); a smaller batch or model takes less")
    if _raised_in(error, "jax/_src/xla_bridge.py"):
        # Where JAX knows of no device of a kind that was asked for, it stumbles over an assertion.
        reason = text.partition(" (set JAX_PLATFORMS=")[0] or "no such device here"
        return UserError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {reason}; unset it to take what there is"
        )
    return _refusal_of_a_bucket(error, text)


def _file_of(error: BaseException) -> str | None:
    """What was being read: opening a file names it, reading from it does not, but whoever does that has its path."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if isinstance(value, os.PathLike):
                return os.fspath(value)
    return None


# Of gcsfs and google-cloud-storage; TensorStore and array_record raise ValueError and RuntimeError with an address.
_BUCKET_LIBRARIES = ("gcsfs", "fsspec", "aiohttp", "requests", "google")
_REFUSALS = (  # a pattern in what they say, what it means, and whether time may mend it: the first that fits
    (r"anonymous|unauthorized|invalid credentials|default credentials|\b401\b",
     "not without credentials; gcloud auth application-default login, or a service account that may use the bucket",
     UserError),
    (r"forbidden|permission.denied|\b403\b",
     "these credentials may not do this; ask for roles/storage.objectAdmin on the bucket", UserError),
    (r"not.?found|\b404\b", "no such bucket or object", UserError),
    (r"connect|name or service|failed to establish|time.?out|timed out|payload|chunked|transport",
     "cannot be reached from here", TryAgain),
    (r"unavailable|\b50[0-4]\b|\b429\b|exhausted", "the server is not available; try again later", TryAgain),
)  # fmt: skip


def _of_a_bucket_library(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _BUCKET_LIBRARIES


def _refusal_of_a_bucket(error: BaseException, text: str) -> UserError | None:
    """What each library says is all that can be relied on: their exceptions have nothing in common."""
    library = _of_a_bucket_library(error)
    url = re.search(r"\bb/([^/\s]+)/o(?:/|\?name=|$|\s)([^?&\s]*)", text)
    address = re.search(r"gs://[^\s;:]+", text)
    named = url if isinstance(error, OSError) else address if isinstance(error, ValueError | RuntimeError) else None
    if not library and not named:
        return None
    said = f"{type(error).__name__} {text}"
    meant = [(meaning, kind) for pattern, meaning, kind in _REFUSALS if re.search(pattern, said, re.IGNORECASE)]
    if not (meant or library):
        return None  # a bug may name an address as well
    meaning, kind = meant[0] if meant else ("refused", UserError)
    where = f"gs://{url[1]}/{urllib.parse.unquote(url[2])}" if url else address and address[0]
    where = where or ", ".join(re.findall(r"gs://\S+", " ".join(sys.argv))) or "a bucket"  # some do not say which
    return kind(f"{where}: {meaning} ({text[:200]})")


def _raised_in(error: BaseException, file: str) -> bool:
    *_, last = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return last.replace(os.sep, "/").endswith(file)


def _check_arguments(arguments: list[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"{argument}: expected arguments in UTF-8") from None


def _end(line: str, status: int) -> None:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
    print(shown, file=sys.stderr, flush=True)
    sys.exit(status)


def _terminate(number, frame) -> None:
    raise _Terminated


def _end_at_once(number, frame) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)
