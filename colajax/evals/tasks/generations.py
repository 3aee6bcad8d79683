"""The file of a task's outputs while it grows: batches are appended, and a killed evaluation goes on behind them."""

import json
import os
from collections.abc import Sequence

from etils import epath

from colajax.errors import UserError
from colajax.evals.tasks.outputs import Output
from colajax.files import in_bucket, write_whole


class Generations:
    """Outputs in a fixed order; `done` of them are in the file.

    A last line that was cut is removed. Raises UserError where the file has other outputs than those of `ids`, which
    are all that are to come, in order.
    """

    def __init__(self, file: epath.Path, ids: Sequence[str]):
        self._file = file
        found = file.read_bytes() if file.exists() else b""
        self._whole = found[: found.rfind(b"\n") + 1]
        lines = self._whole.split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            expected = ids[number - 1] if number <= len(ids) else None
            if _id_of(line) != expected:
                raise UserError(
                    f"{file}:{number}: not the output of record {expected!r}; remove the file to begin anew"
                )
        self.done = len(lines)
        if self._whole != found:
            write_whole(file, self._whole)

    def add(self, outputs: Sequence[Output]) -> None:
        """Appends a batch; it is on disk when this returns. An object in a bucket is written anew each time."""
        new = "".join(output.line() for output in outputs).encode()
        if in_bucket(self._file):
            self._whole += new
            write_whole(self._file, self._whole)
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "ab") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())


def _id_of(line: bytes) -> object:
    try:
        return json.loads(line)["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return line  # which is no id
