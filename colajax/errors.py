"""The one exception for a user's mistake, and how a command line ends on it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend.

    The message is one line: the file, record or config key, what was expected, and what to do.
    """


def run_main(main: Callable[[], None]) -> None:
    """Runs a command line; a UserError is printed without a traceback and exits with status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
