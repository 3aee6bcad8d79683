"""Meshes, sharding rules and the environment of processes, against arithmetic, without devices."""

import dataclasses
import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType
from tiny_runs import file_of

from colajax.errors import UserError
from colajax.parallel import processes
from colajax.parallel.batch import check_batch
from colajax.parallel.mesh import AXES, make_mesh, mesh_shape, parse_mesh
from colajax.parallel.rules import parameter_shardings
from colajax.stages import STAGES
from colajax.train.config import load_config
from colajax.train.optimizer import optimizer_of
from colajax.train.state import abstract_state

SIZES = st.lists(st.integers(1, 12), min_size=3, max_size=3)


def mesh(*sizes: int) -> AbstractMesh:
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


def test_hosts_of_gpus_are_not_slices():
    """Of 4 hosts with 8 GPUs, which jax numbers as slices: any axis may cross them, and neighbours stay together."""
    kind = dataclasses.make_dataclass(
        "GPU", ("id", "platform", "device_kind", "slice_index", "process_index"), frozen=True
    )
    gpus = [kind(i, "gpu", "NVIDIA H100", i // 8, i // 8) for i in range(32)]
    found = make_mesh({"data": -1, "fsdp": 16, "tensor": 1}, gpus)
    assert [[gpu.id for gpu in row[:, 0]] for row in found.devices] == [list(range(16)), list(range(16, 32))]


@given(SIZES, st.integers(0, 2))
def test_minus_one_takes_what_the_others_leave(sizes, free):
    open_sizes = [-1 if i == free else size for i, size in enumerate(sizes)]
    assert mesh_shape(dict(zip(AXES, open_sizes, strict=True)), math.prod(sizes)) == tuple(sizes)
    assert mesh_shape(dict(zip(AXES, sizes, strict=True)), math.prod(sizes)) == tuple(sizes)


@given(SIZES, st.integers(1, 2000))
def test_sizes_that_are_not_the_number_of_devices_are_refused(sizes, count):
    if math.prod(sizes) == count:
        count += 1
    with pytest.raises(UserError, match=rf"does not equal the number of devices, {count}; set"):
        mesh_shape(dict(zip(AXES, sizes, strict=True)), count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=-1,fsdp=3", "3 does not divide the number of devices, 8"),
        ("data=-1,fsdp=-1", "one of them may be -1"),
        ("fsdp=0", "sizes of at least 1"),
        ("fdsp=4", "expected a mesh such as data=-1,fsdp=16,tensor=1"),
        ("fsdp=four", "expected a mesh such as"),
        ("fsdp=²", "expected a mesh such as"),
        ("fsdp=" + 5000 * "9", "expected a mesh such as"),
    ],
)
def test_what_is_no_mesh_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        mesh_shape(parse_mesh(text), 8)


def test_a_batch_that_does_not_divide_is_told_which_does():
    check_batch(mesh(8, 16, 1), 1408)
    with pytest.raises(UserError, match=r"config.batch_size is 1408: .* data 16 x fsdp 16 = 256, such as 1536; or"):
        check_batch(mesh(16, 16, 1), 1408)
    check_batch(mesh(16, 16, 1), 1536, parts=2)
    with pytest.raises(UserError, match="accumulation_steps 4 = 1024, such as 2048"):
        check_batch(mesh(16, 16, 1), 1536, parts=4)


def test_a_large_parameter_that_would_lie_whole_everywhere_is_named():
    shapes = {"blocks": {"kernel": jax.ShapeDtypeStruct((513, 514), "float32")}}
    names = {"blocks": {"kernel": ("embed", "mlp")}}
    assert parameter_shardings(mesh(8, 1, 1), names, shapes)["blocks"]["kernel"].is_fully_replicated  # a mesh of copies
    assert parameter_shardings(mesh(1, 8, 2), names, shapes)["blocks"]["kernel"].spec[1] == "tensor"
    with pytest.raises(UserError, match=r"parameter blocks/kernel \(513, 514\), 1 MB, would lie whole .* fsdp 8 and"):
        parameter_shardings(mesh(1, 8, 1), names, shapes)
    small = {"blocks": {"kernel": jax.ShapeDtypeStruct((511, 511), "float32")}}
    assert parameter_shardings(mesh(1, 8, 1), names, small)["blocks"]["kernel"].is_fully_replicated


@pytest.mark.parametrize("stage", ["vae", "joint", "ar", "llada"])
@pytest.mark.parametrize("sizes", [(8, 16, 1), (1, 8, 16), (16, 1, 8), (1, 32, 4)])
def test_parameters_and_optimizer_of_the_paper_s_models_are_divided(stage, sizes):
    config = load_config(file_of(stage), ["init_from=somewhere"] if stage == "joint" else [])
    stage = STAGES[stage](config, 0, 1)
    state = abstract_state(stage, optimizer_of(config, stage), mesh(*sizes))
    whole = sum(leaf.size for leaf in jax.tree.leaves(state))
    own = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state))
    small = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.size * 4 <= 2**20)  # these may lie whole
    assert own <= whole / (sizes[1] * sizes[2]) + small
    assert small < whole / 500
    first = stage.groups[0]
    slots = state.opt_state[first][1]
    for moments in (slots.mu, slots.nu):
        assert jax.tree.map(lambda x: x.sharding, moments) == jax.tree.map(lambda x: x.sharding, state.params[first])


CLUSTER = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES is set: expected all of JAX_COORDINATOR_ADDRESS"),
        (CLUSTER | {"JAX_NUM_PROCESSES": "two"}, "'two', '0': expected ints"),
        (CLUSTER | {"JAX_PROCESS_ID": "2"}, r"JAX_PROCESS_ID is 2: expected 0 to .* \(1\)"),
    ],
)
def test_processes_that_the_environment_does_not_describe(environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        processes.join()
