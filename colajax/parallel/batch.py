"""Batches over the mesh: which rows a process has to read, and the global array of what every process read."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from colajax.errors import UserError
from colajax.parallel.rules import sharding


def batch_shares(mesh: Mapping[str, int]) -> int:
    """Into how many shares a batch is divided; mesh: sizes by axis."""
    return mesh["data"] * mesh["fsdp"]


def check_batch(mesh: Mesh, batch_size: int, parts: int = 1) -> None:
    """Raises UserError unless each of the `parts` of a batch divides over the devices that share it."""
    unit = parts * batch_shares(mesh.shape)
    if batch_size % unit:
        accumulated = f" x accumulation_steps {parts}" if parts > 1 else ""
        raise UserError(
            f"config.batch_size is {batch_size}: expected a multiple of data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']}{accumulated} = {unit}, such as {-(-batch_size // unit) * unit}; or give devices to "
            f"config.mesh.tensor instead"
        )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that devices of this process hold, in order."""
    held = sharding(mesh, ("batch",), (batch_size,)).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held.values()]))


def global_batch(mesh: Mesh, local: np.ndarray, batch_size: int) -> jax.Array:
    """(B, ...) over the mesh, from the rows of `local_rows`, (rows, ...)."""
    shape = (batch_size, *local.shape[1:])
    rows = local_rows(mesh, batch_size)

    def shard(index):
        return local[np.searchsorted(rows, np.arange(batch_size)[index[0]])]

    return jax.make_array_from_callback(shape, sharding(mesh, ("batch", *[None] * (local.ndim - 1)), shape), shard)
