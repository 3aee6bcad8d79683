"""The processes of a run: joined from what the environment says."""

import contextlib
import os
import random
import socket

import jax

from colajax.errors import TryAgain, UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Joins the run's other processes; to be called once, before anything touches a device.

    In this order: the three variables above; a cluster that JAX knows (TPU pods, also under GKE; Slurm tasks; MPI);
    otherwise the process is alone. Raises UserError on variables that do not fit together, and TryAgain where the
    others do not come.
    """
    given = [name for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)]
    if not given:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address" not in str(error):  # what JAX says where there is no cluster
                raise
        return
    if len(given) < 3:
        raise UserError(f"{given[0]} is set: expected all of {ADDRESS} (host:port), {COUNT} and {INDEX}, or none")
    try:
        count, index = int(os.environ[COUNT]), int(os.environ[INDEX])
    except ValueError:
        shown = f"{os.environ[COUNT]!r}, {os.environ[INDEX]!r}"
        raise UserError(f"{COUNT} and {INDEX} are {shown}: expected ints") from None
    if not 0 <= index < count:
        raise UserError(f"{INDEX} is {index}: expected 0 to {COUNT} - 1 ({count - 1})")
    address = os.environ[ADDRESS]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"{ADDRESS} is {address!r}: expected host:port, the same in every process")
    if index == 0:
        _check_free(int(port))
    try:
        jax.distributed.initialize(address, count, index)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TryAgain(f"{ADDRESS} is {address}: process {index} of {count} cannot join ({reason})") from error


def _check_free(port: int) -> None:
    """Raises UserError where this machine cannot listen at `port`, by which JAX's coordinator would crash."""
    both = socket.has_dualstack_ipv6()
    try:
        socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        ).close()
    except OSError as error:
        reason = os.strerror(error.errno)
        raise UserError(f"{ADDRESS}: cannot listen at port {port} ({reason}); choose another") from None


def free_port() -> int:
    """Of this machine, for what is about to listen there; below those that the system gives to whoever asks for any:
    such a one another process may have got before it is used."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", port))
            return port


def is_first() -> bool:
    """Whether this process is the one that writes logs."""
    return jax.process_index() == 0
