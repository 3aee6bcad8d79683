"""How a command line starts: what comes before its imports, and how its arguments are read."""

import argparse
import os
import pathlib
import sys
import time

from colajax.errors import UserError, end_at_once_on_interrupt

BEGAN = time.time()  # of the process, but for Python's own start
CACHE = "JAX_COMPILATION_CACHE_DIR"  # JAX reads it when it is imported


def begin() -> None:
    """To be called before imports that take seconds: Ctrl-C ends them in one line, and what XLA compiles is kept on
    disk for the next start, in $JAX_COMPILATION_CACHE_DIR (by default colajax/xla in $XDG_CACHE_HOME or ~/.cache).
    JAX_ENABLE_COMPILATION_CACHE=false turns that off."""
    end_at_once_on_interrupt()
    if CACHE in os.environ:
        return
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "colajax" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home to keep anything in: a service account, a read-only image
        return
    if os.access(folder, os.W_OK):
        os.environ[CACHE] = str(folder)


class Parser(argparse.ArgumentParser):
    """argparse's, with a mistake as a UserError and no abbreviations."""

    def __init__(self, description: str, **arguments):
        """description: the docstring of the command's file, shown as it is."""
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=raw, allow_abbrev=False, **arguments)

    def error(self, message: str) -> None:
        raise UserError(f"{message}; --help shows what there is")

    def parse_known_args(self, args=None, namespace=None):
        # A shell expands `--workdir ~/run`, but not `--workdir=~/run`.
        given = [_expanded(argument) for argument in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(given, namespace)

    def parse_with_config(self) -> tuple[argparse.Namespace, list[str]]:
        """The arguments, and KEY=VALUE of each --config.KEY=VALUE."""
        arguments, rest = self.parse_known_args()
        for argument in rest:
            if not argument.startswith("--config."):
                self.error(f"{argument}: unknown argument")
        return arguments, [argument.removeprefix("--config.") for argument in rest]


def _expanded(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name + equals + os.path.expanduser(value) if name.startswith("--") else argument
