"""The device mesh of a run.

Three axes: `data` (copies of the model, and what crosses the slow network between slices), `fsdp` (the batch is divided
over it as over data, and parameters and optimizer state too), `tensor` (heads, MLP width and vocabulary are divided
over it).
"""

import math
import re
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from colajax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ONE_DEVICE = {"data": 1, "fsdp": 1, "tensor": 1}


def make_mesh(sizes: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """The mesh over `devices` (all of the run's by default), neighbours on the hardware next to each other.

    sizes: of each axis, at most one of them -1: what the others leave. Raises UserError where they do not fit the
    number of devices, or the data axis not the number of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(sizes, len(devices))
    # GPUs have slice_index too: there it tells hosts apart, which any axis may cross.
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices > 1 and devices[0].platform == "tpu":
        if shape[0] % slices:
            raise UserError(f"config.mesh.data is {shape[0]}: expected a multiple of the {slices} slices")
        per_slice = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            per_slice, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(sizes: Mapping[str, int], count: int) -> tuple[int, ...]:
    """The sizes of AXES for `count` devices. Raises UserError where they do not fit."""
    shape = [sizes[axis] for axis in AXES]
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(f"config.mesh is {_shown(shape)}: expected sizes of at least 1, one of them may be -1")
    given = math.prod(size for size in shape if size != -1)
    if -1 in shape and not count % given:
        shape[shape.index(-1)] = count // given
    if math.prod(shape) != count:
        raise UserError(
            f"config.mesh is {_shown(shape)}: {given} does not {'divide' if -1 in shape else 'equal'} the number of "
            f"devices, {count}; set --config.mesh.fsdp to a divisor of it and --config.mesh.data=-1"
        )
    return tuple(shape)


def _shown(shape: Sequence[int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))


def parse_mesh(text: str) -> dict[str, int]:
    """{"data": 8, "fsdp": 16, "tensor": 1} of "data=8,fsdp=16"; an axis that is not named is 1. Raises UserError on any
    other form."""
    sizes = dict(ONE_DEVICE)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in AXES or not re.fullmatch(r"-?[0-9]{1,9}", size):
            raise UserError(f"{text!r}: expected a mesh such as data=-1,fsdp=16,tensor=1")
        sizes[axis] = int(size)
    return sizes
