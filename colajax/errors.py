"""The one exception for a user's mistake, and how a command line ends: on it, on what the outside does, on a signal."""

import os
import signal
import sys
import traceback
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend.

    The message is one line: the file, record or config key, what was expected, and what to do.
    """


class _Terminated(BaseException):
    """SIGTERM came: raised so that what is unfinished is cleared away, as after Ctrl-C."""


def run_main(main: Callable[[], None]) -> None:
    """Runs a command line to its end, without a traceback where the program itself is not at fault.

    Status 2 and one line "error: ..." for a UserError and for what files, memory and devices refuse; 130 and 143 after
    SIGINT and SIGTERM; 141 where nobody reads the output any more. Any other exception is a bug and keeps its
    traceback.
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
    except UserError as error:
        _end(f"error: {error}", 2)
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
        _end(f"error: {refused}", 2)
    finally:
        end_at_once_on_interrupt()


def end_at_once_on_interrupt() -> None:
    """Has Ctrl-C end the process with one line, for when there is nothing to clear away: while Python imports, and
    while it ends."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def refusal_of(error: BaseException) -> str | None:
    """One line on an exception by which a file, memory or a device refuses; None for any other."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory" + (f" ({text})" if text else "")
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return f"out of memory ({text[:300]}); a smaller batch or model takes less"
    if _raised_in(error, "jax/_src/xla_bridge.py"):
        # Where JAX knows of no device of a kind that was asked for, it stumbles over an assertion.
        reason = text.partition(" (set JAX_PLATFORMS=")[0] or "no such device here"
        return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {reason}; unset it to take what there is"
    return None


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
