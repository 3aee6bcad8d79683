"""Safetensors files written tensor by tensor: nothing but the tensor in hand is in memory.

The format is 8 bytes of header length, a JSON header with every tensor's dtype, shape and place, and the bytes. The
header and the order of the bytes are those of the safetensors library.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHARD_BYTES = 5 * 10**9


class Spec(NamedTuple):
    """A tensor to come."""

    shape: tuple[int, ...]
    dtype: str  # a name in DTYPES

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


def write(
    folder: pathlib.Path, specs: dict[str, Spec], tensors: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, str]:  # fmt: skip
    """Writes model.safetensors into `folder`, or numbered shards of at most `shard_bytes` with their index (one larger
    tensor has a shard of its own). `tensors` may come in any order, all of `specs` once. Returns the sha256 of each."""
    shards = _divide(specs, shard_bytes)
    places, digests = {}, {}
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(names, shards, strict=True):
        header, start = {"__metadata__": {"format": "pt"}}, 0
        for name in shard:
            shape, dtype = specs[name]
            end = start + specs[name].bytes
            header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
            start = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + start)
        places |= {name: (file, 8 + len(text) + header[name]["data_offsets"][0]) for name in shard}
    for name, array in tensors:
        (file, offset), (shape, dtype) = places[name], specs[name]
        if array.shape != shape or name in digests:
            raise ValueError(f"{name}: {array.shape}, expected {shape}, once")
        data = np.ascontiguousarray(array.astype(DTYPES[dtype], copy=False)).reshape(-1).view(np.uint8)
        digests[name] = hashlib.sha256(data).hexdigest()
        with (folder / file).open("r+b") as out:
            out.seek(offset)
            out.write(data)
    if missing := set(specs) - set(digests):
        raise ValueError(f"never came: {sorted(missing)}")
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(spec.bytes for spec in specs.values())},
            "weight_map": {name: places[name][0] for name in sorted(specs)},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return digests


def _divide(specs: dict[str, Spec], shard_bytes: int) -> list[list[str]]:
    """Names of each shard, in the library's order: wider dtypes first, then by name."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(specs, key=lambda name: (-np.dtype(DTYPES[specs[name].dtype]).itemsize, name)):
        if shards[-1] and size + specs[name].bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += specs[name].bytes
    return shards
