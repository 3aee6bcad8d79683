"""The machines that a plan can be made for.

TPUs are compiled for: their topologies are those that Google rents, as libtpu describes them without a TPU. For GPUs
and CPUs there is no compiler here, and a plan for them is arithmetic.
"""

import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from colajax.errors import UserError

PLANE = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
)  # fmt: skip

# Read when libtpu is loaded: there is no TPU and no cluster to look for, no lock of another process to wait for, and
# nothing to log.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_HOST_BOUNDS": "1,1,1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}


class TPU(NamedTuple):
    """One generation. Link and network: docs.cloud.google.com/tpu/docs, bidirectional interconnect bandwidth a chip
    over its ports and directions, and data center network bandwidth a chip."""

    shapes: tuple[str, ...]
    clock: float  # Hz, assumed: Google states none
    link: float  # bytes/s of one link in one direction
    ring: int  # chips along a dimension from which on its ends are connected
    network: float  # bytes/s a chip, between slices
    devices_per_chip: int = 1


TPUS = {
    "v5e": TPU(PLANE, 1.5e9, 50e9, 16, 25e9 / 8),
    "v6e": TPU(PLANE, 1.75e9, 100e9, 16, 100e9 / 8),
    "v5p": TPU(CUBE, 1.75e9, 100e9, 4, 50e9 / 8),
    "tpu7x": TPU(CUBE, 1.75e9, 100e9, 4, 100e9 / 8, devices_per_chip=2),
}
# GPUs by the name that JAX gives them, and their memory; data sheets.
GPUS = {"a100": ("NVIDIA A100", 80e9), "h100": ("NVIDIA H100", 80e9), "h200": ("NVIDIA H200", 141e9)}


class Topology(NamedTuple):
    name: str
    device_kind: str  # as JAX calls it
    count: int  # of JAX devices
    hbm: float | None  # bytes of a device that a program may use
    devices: tuple = ()  # to compile for; empty where there is no compiler
    tpu: TPU | None = None

    @property
    def chips(self) -> int:
        return self.count // self.tpu.devices_per_chip if self.tpu else self.count


def find_topology(name: str, slices: int = 1) -> Topology:
    """The topology of a name such as v5p:4x4x8, h100:64 or cpu:8; `slices` of a TPU's, joined by the network.

    Raises UserError with the names there are."""
    kind, _, shape = name.partition(":")
    if kind in TPUS and shape in TPUS[kind].shapes:
        return _tpu(name, TPUS[kind], slices)
    if kind in GPUS and re.fullmatch(r"[1-9]\d*", shape) and slices == 1:
        return Topology(name, GPUS[kind][0], int(shape), GPUS[kind][1])
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", shape) and slices == 1:
        return Topology(name, "cpu", int(shape), None)
    if kind in TPUS:
        raise UserError(f"{name}: no such topology; expected {kind}: and one of {', '.join(TPUS[kind].shapes)}")
    if kind in (*GPUS, "cpu"):
        raise UserError(f"{name}: expected {kind}: and the number of devices, without slices")
    examples = [f"{tpu}:{TPUS[tpu].shapes[-1]}" for tpu in TPUS] + [f"{gpu}:64" for gpu in GPUS] + ["cpu:8"]
    raise UserError(f"{name}: no such topology; expected a name such as {', '.join(examples)}")


def _tpu(name: str, tpu: TPU, slices: int) -> Topology:
    for key, value in _LIBTPU.items():
        os.environ.setdefault(key, value)
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise UserError("a plan for TPUs needs their compiler: pip install 'colajax[tpu]'") from None
        raise
    devices = tuple(found.devices)
    name = f"{slices} slices of {name}" if slices > 1 else name
    return Topology(name, devices[0].device_kind, len(devices), _usable_hbm(devices[0]), devices, tpu)


def _usable_hbm(device) -> float:
    """What the compiler lets a program have, as it says when it refuses one of 2^42 bytes."""
    huge = jax.ShapeDtypeStruct((2**40,), "float32", sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return out_of_memory(error)[1]
    raise AssertionError("a program of 4 TB compiled")


def out_of_memory(error: Exception) -> tuple[float, float] | None:
    """(bytes needed, bytes there are) of one device, from the compiler's refusal; None where it is not about memory."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", str(error))
    if not found or "RESOURCE_EXHAUSTED" not in str(error):
        return None
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(found[1]) * unit[found[2]], float(found[3]) * unit[found[4]]
