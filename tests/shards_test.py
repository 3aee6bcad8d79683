"""Safetensors in shards against the library's own files, and its checks of a file's header."""

import json

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy

from colajax.errors import UserError
from colajax.hf import shards

ARRAYS = st.dictionaries(
    st.text("abc.é\"", min_size=1, max_size=4),
    hypothesis.extra.numpy.arrays(
        np.float32, hypothesis.extra.numpy.array_shapes(min_dims=0, max_dims=3, max_side=4),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@hypothesis.given(ARRAYS, st.integers(1, 200), st.randoms())
@hypothesis.settings(deadline=None)
def test_shards_hold_what_came_and_one_is_the_librarys_file(tmp_path_factory, arrays, shard_bytes, random):
    folder = tmp_path_factory.mktemp("shards")
    specs = {name: shards.Spec(array.shape, random.choice(["float32", "bfloat16"])) for name, array in arrays.items()}
    rounded = {name: array.astype(shards.DTYPES[specs[name].dtype]) for name, array in arrays.items()}
    shards.write(folder, specs, arrays.items())
    assert (folder / "model.safetensors").read_bytes() == safetensors.numpy.save(rounded, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    shards.write(folder, specs, arrays.items(), shard_bytes)
    files = sorted(folder.glob("*.safetensors"))
    read = {}
    for file in files:
        held = {name: stored.read() for name, stored in shards.stored_in(file).items()}
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= shard_bytes
        library = safetensors.numpy.load_file(file)
        assert {n: (a.shape, a.dtype, a.tobytes()) for n, a in held.items()} == {
            n: (a.shape, a.dtype, a.tobytes()) for n, a in library.items()
        }
        read |= held
    assert {name: array.tobytes() for name, array in read.items()} == {n: a.tobytes() for n, a in rounded.items()}
    if len(files) > 1:
        weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        assert {folder / weight_map[name] for name in arrays} == set(files)


@pytest.mark.parametrize(
    "tensors", [[], [("a", np.zeros(3))], [("b", np.zeros(2))], [("a", np.zeros(2)), ("a", np.zeros(2))]]
)
def test_what_does_not_come_as_announced_is_an_error(tmp_path, tensors):
    with pytest.raises(ValueError, match="a"):
        shards.write(tmp_path, {"a": shards.Spec((2,), "float32")}, tensors)


@hypothesis.given(st.integers(0, 200), st.integers(0, 255))
@hypothesis.settings(max_examples=200, deadline=None)
def test_a_damaged_file_is_named_or_read_within_its_bounds(tmp_path_factory, place, byte):
    """Whatever is changed: one line, or tensors of the shape that the header says."""
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    data = bytearray(safetensors.numpy.save({"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float16)}))
    data[place % len(data)] = byte
    path.write_bytes(data)
    said = str(path)
    try:
        for stored in shards.stored_in(path).values():
            assert stored.read().shape == stored.shape
    except UserError as error:
        said = str(error)
    assert str(path) in said
