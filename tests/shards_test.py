"""Safetensors written tensor by tensor against the library."""

import json

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy

from colajax.hf import shards

ARRAYS = st.dictionaries(
    st.text("abc.é\"", min_size=1, max_size=4),
    hypothesis.extra.numpy.arrays(np.float32, hypothesis.extra.numpy.array_shapes(max_dims=3, max_side=4)),
    min_size=1, max_size=6,
)  # fmt: skip


@hypothesis.given(ARRAYS, st.integers(1, 200), st.randoms())
def test_streamed_files_are_those_of_the_library(tmp_path_factory, arrays, shard_bytes, random):
    folder = tmp_path_factory.mktemp("shards")
    specs = {name: shards.Spec(array.shape, random.choice(["float32", "bfloat16"])) for name, array in arrays.items()}
    arrays = {name: array.astype(shards.DTYPES[specs[name].dtype]) for name, array in arrays.items()}
    order = random.sample(sorted(arrays), len(arrays))
    shards.write(folder, specs, ((name, arrays[name]) for name in order))
    assert (folder / "model.safetensors").read_bytes() == safetensors.numpy.save(arrays, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    shards.write(folder, specs, ((name, arrays[name]) for name in order), shard_bytes)
    files = sorted(folder.glob("*.safetensors"))
    read = {}
    for file in files:
        held = safetensors.numpy.load_file(file)
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= shard_bytes
        read |= held
    assert {name: array.tobytes() for name, array in read.items()} == {n: a.tobytes() for n, a in arrays.items()}
    if len(files) > 1:
        weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        assert {folder / weight_map[name] for name in arrays} == set(files)


@pytest.mark.parametrize("tensors", [[], [("a", np.zeros(3))], [("a", np.zeros(2)), ("a", np.zeros(2))]])
def test_what_does_not_come_as_announced_is_an_error(tmp_path, tensors):
    with pytest.raises(ValueError, match="a"):
        shards.write(tmp_path, {"a": shards.Spec((2,), "float32")}, tensors)
