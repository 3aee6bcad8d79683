"""What the processes of a run tell each other while they start: errors, and what must be the same everywhere."""

import json
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from colajax.errors import TryAgain, UserError, refusal_of
from colajax.parallel.processes import is_first

MESSAGE_BYTES = 4096
T = TypeVar("T")


def _gather(message: str) -> list[str]:
    """Every process's message of at most MESSAGE_BYTES, in the order of the processes."""
    encoded = message.encode()
    if len(encoded) > MESSAGE_BYTES:
        raise ValueError(f"a message of {len(encoded)} bytes; processes tell each other at most {MESSAGE_BYTES}")
    if jax.process_count() == 1:
        return [message]
    padded = np.frombuffer(encoded.ljust(MESSAGE_BYTES, b"\0"), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, MESSAGE_BYTES)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in gathered]


def share_errors(function: Callable[[], T]) -> T:
    """function() in every process; where it fails in one it fails in all, so that none waits for one that has ended.

    A mistake, or what a file, memory or a device refuses, is a UserError in every process (a TryAgain where time may
    mend it), which says whose it was unless all have the same. A bug of one keeps its traceback there and is a
    UserError in the others.
    """
    result, message, bug = None, "", None
    try:
        result = function()
    except Exception as error:
        refused = refusal_of(error)
        bug = None if refused else error
        told = refused or UserError(f"{type(error).__name__}: {error}")
        message = f"{told.status} {told}"
    errors = _gather(message.encode()[:MESSAGE_BYTES].decode(errors="ignore"))
    if bug is not None:
        raise bug
    for process, error in enumerate(errors):
        if error:
            status, _, said = error.partition(" ")
            kind = TryAgain if int(status) == TryAgain.status else UserError
            raise kind(said if set(errors) == {error} else f"process {process}: {said}")
    return result


def check_agreement(facts: Mapping[str, object]) -> None:
    """Raises UserError, in every process, unless all have the same facts (values that JSON can hold)."""
    of_process = [json.loads(message) for message in _gather(json.dumps(facts))]
    for process, found in enumerate(of_process):
        for name in facts:
            if found.get(name) != of_process[0].get(name):
                raise UserError(
                    f"{name} is {found.get(name)!r} in process {process} and {of_process[0].get(name)!r} in process 0: "
                    f"all processes of a run need the same program, configuration and view of its folders"
                )


def from_first(function: Callable[[], T]) -> T:
    """function() as the first process finds it, in every process; a UserError of it is raised in all. The result is a
    small value that JSON can hold."""
    result = share_errors(lambda: function() if is_first() else None)
    return json.loads(_gather(json.dumps(result))[0])
