"""Safetensors files, local or in a bucket: written by the library a shard at a time, read a tensor at a time."""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors.numpy
from etils import epath

from colajax.errors import UserError
from colajax.hf.local_files import written_to

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_CODES = {"F64": np.float64, "F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
# A shard is what an export holds in memory and, on its way into a bucket, on local disk.
SHARD_BYTES = 2 * 10**9
_HEADER_BYTES = 100_000_000  # that the library reads at most


class Spec(NamedTuple):
    """A tensor to come."""

    shape: tuple[int, ...]
    dtype: str  # a name in DTYPES

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


def write(
    folder: epath.PathLike, specs: dict[str, Spec], tensors: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, str]:  # fmt: skip
    """Writes model.safetensors into `folder`, or numbered shards of at most `shard_bytes` with their index (one larger
    tensor has a shard of its own). `tensors` come as `specs` announces them. Returns the sha256 of each tensor. Raises
    FloatingPointError naming a tensor that holds NaN or infinity."""
    folder, coming, digests, weight_map = epath.Path(folder), iter(tensors), {}, {}
    shards = _divide(specs, shard_bytes)
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        held = {}
        for name in shard:
            came, array = next(coming, (None, np.zeros(0)))
            if (came, array.shape) != (name, specs[name].shape):
                raise ValueError(f"{came} of shape {array.shape} came, {name} of {specs[name].shape} was announced")
            if not np.isfinite(array).all():
                raise FloatingPointError(f"{name} holds NaN or infinity")
            held[name] = np.asarray(array, DTYPES[specs[name].dtype], order="C")
            digests[name] = hashlib.sha256(held[name].reshape(-1).view(np.uint8)).hexdigest()
            weight_map[name] = file
        with written_to(folder / file) as local:
            safetensors.numpy.save_file(held, local, {"format": "pt"})
    if (more := next(coming, None)) is not None:
        raise ValueError(f"{more[0]} came, which was not announced")
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(spec.bytes for spec in specs.values())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return digests


def _divide(specs: dict[str, Spec], shard_bytes: int) -> list[list[str]]:
    """Names of each shard, in the order of `specs`."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.bytes
    return shards


class Stored(NamedTuple):
    """A tensor in a safetensors file: where its bytes are, and what they mean."""

    path: epath.Path
    start: int
    bytes: int
    shape: tuple[int, ...]
    dtype: type

    def read(self) -> np.ndarray:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return np.frombuffer(file.read(self.bytes), self.dtype).reshape(self.shape)


def stored_in(path: epath.PathLike) -> dict[str, Stored]:
    """The tensors of a file by name; the header alone is read. Raises UserError on a file that is missing or not
    whole and on tensors that are not of floating-point numbers."""
    path = epath.Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
            head += file.read(min(int.from_bytes(head, "little"), _HEADER_BYTES))
        # The library checks a header against the file's length and its tensors' sizes; the tensors it need not see.
        with tempfile.NamedTemporaryFile() as without_tensors:
            without_tensors.write(head)
            without_tensors.truncate(path.stat().length)
            safetensors.safe_open(without_tensors.name, framework="numpy")
    except FileNotFoundError:
        raise UserError(f"{path}: not found, though the index names it; copy the missing shard") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from None
    found = {}
    for name, entry in json.loads(head[8:]).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _CODES:
            raise UserError(f"{path}: {name} is of type {entry['dtype']}; expected one of {', '.join(_CODES)}")
        start, end = entry["data_offsets"]
        found[name] = Stored(path, len(head) + start, end - start, tuple(entry["shape"]), _CODES[entry["dtype"]])
    return found
