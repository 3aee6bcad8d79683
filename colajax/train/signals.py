"""Signals that stop a run after a step that all its processes have done."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one does what it always did.

    Where there are several processes JAX notes SIGTERM and has all of them stop after the same step: a signal to one
    is enough."""

    def __enter__(self):
        self._number, self._many = 0, jax.process_count() > 1
        noted = (signal.SIGINT,) if self._many else (signal.SIGINT, signal.SIGTERM)
        self._before = {s: signal.signal(s, self._note) for s in noted}
        return self

    def _note(self, number, frame):
        signal.signal(number, self._before[number])
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._number = number

    def request(self) -> None:
        """As a SIGTERM does; from any thread."""
        os.kill(os.getpid(), signal.SIGTERM)

    def agreed(self, step: int) -> int:
        """The signal that the run stops of after `step`, or 0. To be asked once a step, in every process."""
        if not self._many:
            return self._number
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0

    def __exit__(self, *exc):
        for number, handler in self._before.items():
            signal.signal(number, handler)
