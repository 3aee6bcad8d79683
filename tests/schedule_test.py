"""Reading compiled programs: a text of known content, and small programs compiled for real topologies, whose loops and
collectives are known; topologies; the model of the interconnect."""

import functools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from colajax.errors import UserError
from colajax.parallel.mesh import AXES, make_mesh
from colajax.planning import hlo
from colajax.planning.interconnect import exposed_seconds, seconds
from colajax.planning.schedule import Collective, read_schedule
from colajax.planning.topology import TPUS, find_topology

MESH = {"data": 2, "fsdp": 2, "tensor": 1}

# As the compiler writes it, layouts and most of backend_config left out: a loop of 7 rounds from 1 to 15 in steps of 2.
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (p.0: bf16[8,128]) -> bf16[4,128] {
  %p.0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[8,128]{1,0:T(8,128)(2,1)} all-reduce(%p.0), channel_id=4, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %slice.1 = bf16[4,128]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.9)
}

%start (p.1: f32[4,128]) -> (f32[4,128], f32[8,128]) {
  %p.1 = f32[4,128]{1,0} parameter(0)
  %all-gather.5 = f32[8,128]{1,0} all-gather(%p.1), channel_id=5, replica_groups=[2,2]<=[2,2]T(1,0), backend_config={"async_collective_fusion_config":{}}
  ROOT %call.1 = (f32[4,128]{1,0}, f32[8,128]{1,0}) custom-call(%all-gather.5), custom_call_target="AsyncCollectiveStart"
}

%sparse (p.2: s32[16]) -> s32[16] {
  %p.2 = s32[16]{0} parameter(0)
  ROOT %all-reduce.6 = s32[16]{0} all-reduce(%p.2), channel_id=6, replica_groups=mesh['a'=4] {'a'}, to_apply=%add
}, execution_thread="sparsecore"

%body (carried: (s32[], bf16[8,128], s32[])) -> (s32[], bf16[8,128], s32[]) {
  %carried = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carried), index=0
  %x = bf16[8,128]{1,0} get-tuple-element(%carried), index=1
  %by = s32[]{:T(128)} get-tuple-element(%carried), index=2
  %matmul = bf16[8,128]{1,0} fusion(%x), kind=kOutput, calls=%add, metadata={op_name="jit(step)/transpose(jvp())/while/body/checkpoint/rematted_computation/mlp/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %begin = (f32[4,128]{1,0}, f32[8,128]{1,0}) fusion(%x), kind=kCustom, calls=%start
  %scores = bf16[8,128]{1,0} fusion(%x), kind=kOutput, calls=%start, metadata={op_name="jit(step)/jvp(attention)/dot_general"}, backend_config={"window_config":{"estimated_cycles":"300"}}
  %copied = bf16[8,128]{1,0} copy(%x), backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  %finish = f32[8,128]{1,0} fusion(%begin), kind=kCustom, calls=%start
  %scattered = bf16[4,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %next = s32[]{:T(128)} add(%i, %by)
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[8,128]{1,0}, s32[]{:T(128)}) tuple(%next, %matmul, %by)
}

%condition (carried.1: (s32[], bf16[8,128], s32[])) -> pred[] {
  %carried.1 = (s32[]{:T(128)}, bf16[8,128]{1,0}, s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%carried.1), index=0
  %limit = s32[]{:T(128)} constant(14)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.0: bf16[8,128], y.0: s32[16]) -> bf16[8,128] {
  %x.0 = bf16[8,128]{1,0} parameter(0)
  %y.0 = s32[16]{0} parameter(1)
  %one = s32[]{:T(128)} constant(1)
  %two = s32[]{:T(128)} constant(2)
  %first = s32[]{:T(128)} copy(%one)
  %tuple.0 = (s32[]{:T(128)}, bf16[8,128]{1,0}, s32[]{:T(128)}) tuple(%first, %x.0, %two)
  %send = ((), (), (s32[128])) async-start(), async_execution_thread="sparsecore", calls=%sparse
  %early = f32[] reduce(%x.0), to_apply=%add, backend_config={"window_config":{"estimated_cycles":"50"}}
  %send.1 = ((s32[16]), s32[16], (s32[128])) async-update(%send, %y.0)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0}, s32[]{:T(128)}) while(%tuple.0), condition=%condition, body=%body
  %arrived = s32[16] async-done(%send.1)
  %sorted = s32[16]{0} sort(%arrived), to_apply=%add
  ROOT %result = bf16[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_program_of_known_content():
    schedule = read_schedule(PROGRAM, MESH)
    assert schedule.cycles == {"MLP": 7000, "attention": 2100, "other (norms, residuals, copies)": 50}
    assert schedule.recomputed == 7000
    assert schedule.untimed == {"sort": 1}
    found = {c.kind: c for c in schedule.collectives}
    assert len(schedule.collectives) == 3
    gather, scatter, reduce = found["all-gather"], found["reduce-scatter"], found["all-reduce"]
    assert gather[1:] == (("data",), [[0, 2], [1, 3]], 4 * 128 * 4, 7, True, 300)
    assert scatter[1:] == (("fsdp",), [[0, 1], [2, 3]], 8 * 128 * 2 / 2, 7, False, 0)
    # A SparseCore has its operands from the update on, when 50 cycles are over.
    assert reduce[1:] == (("data", "fsdp"), [[0, 1, 2, 3]], 2 * 16 * 4 * 3 / 4, 1, True, 9100)


@pytest.mark.parametrize(
    ("old", "new", "trips"),
    [
        ("constant(14)", "constant(15)", 7),
        ("constant(14)", "constant(16)", 8),
        ("constant(14)", "constant(1)", 0),
        ("copy(%one)", "parameter(2)", None),
        ("direction=LT", "direction=NE", None),
        ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"31"}}', 31),
    ],
)
def test_trips_of_a_loop(old, new, trips):
    program = hlo.parse(PROGRAM.replace(old, new))
    main = program.computations[program.entry]
    assert hlo.trip_count(program, main, main.instructions["loop"]) == trips


def test_a_loop_of_unknown_length_is_reported():
    schedule = read_schedule(PROGRAM.replace("direction=LT", "direction=NE"), MESH)
    assert schedule.untimed["while loop of unknown length, counted once"] == 1
    assert schedule.cycles["MLP"] == 1000


def test_no_program():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("nothing")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_groups_in_every_notation(sizes, data):
    """Groups along some axes of a mesh: the notation of meshes and that of ranges, against lists by coordinates."""
    inside = data.draw(st.lists(st.sampled_from(range(len(sizes))), unique=True).map(sorted))
    groups: dict[tuple, list[int]] = {}
    for device, place in enumerate(np.ndindex(*sizes)):
        groups.setdefault(tuple(p for i, p in enumerate(place) if i not in inside), []).append(device)
    expected = sorted(groups.values())
    width, outside = len(expected[0]), [i for i in range(len(sizes)) if i not in inside]
    axes = ",".join(f"'x{i}'={size}" for i, size in enumerate(sizes))
    used = ",".join(f"'x{i}'" for i in inside)
    dims, order = ",".join(map(str, sizes)), ",".join(map(str, outside + inside))
    lists = ",".join("{" + ",".join(map(str, group)) + "}" for group in expected)
    for written in (
        f"mesh[{axes}] {{{used}}}", f"[{len(expected)},{width}]<=[{dims}]T({order})", f"{{{lists}}}",
    ):  # fmt: skip
        found = hlo.device_groups(f", channel_id=1, replica_groups={written}, dimensions={{1}}", math.prod(sizes))
        assert sorted(found) == expected
    mesh = {f"x{i}": size for i, size in enumerate(sizes)}
    assert hlo.varying_axes(expected, mesh) == tuple(f"x{i}" for i in inside if sizes[i] > 1)


def test_groups_of_a_part_of_an_axis_and_of_pairs():
    assert hlo.device_groups("replica_groups=mesh['x'=8] {'x':(2)2}", 8) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    # Of 4 x 2 devices, the second index is the mesh's first axis.
    turned = "replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x'}"
    assert hlo.device_groups(turned, 8) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert hlo.device_groups("source_target_pairs={{0,1},{1,0}}, x={}", 4) == [[0, 1], [1, 0]]
    assert hlo.device_groups("replica_groups={}, x", 3) == [[0, 1, 2]]
    with pytest.raises(ValueError, match="unknown form"):
        hlo.device_groups("replica_groups=?", 4)


# ---- the real compiler ----------------------------------------------------------------------------------------------

LAYERS, WIDTH, ROWS = 5, 256, 128  # of a device


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """compiled(topology, layers): the schedule of a program whose collectives are written out."""

    @functools.cache
    def compile_for(name: str, layers: int):
        topology = find_topology(name)
        mesh = Mesh(np.array(topology.devices).reshape(2, 2, 1), AXES, axis_types=(AxisType.Auto,) * 3)

        def layer(x, w):
            with jax.named_scope("mlp"):
                x = jnp.tanh(x @ lax.all_gather(w, "fsdp", axis=0, tiled=True))
            return lax.fori_loop(0, 3, lambda i, x: lax.ppermute(x, "data", [(0, 1), (1, 0)]) * 0.5, x), None

        def program(x, weights):
            x, _ = lax.scan(layer, x, weights)
            return lax.psum(jnp.cos(x), ("data", "fsdp"))

        spread = jax.shard_map(
            program, mesh=mesh, in_specs=(P(("data", "fsdp")), P(None, "fsdp")), out_specs=P(), check_vma=False
        )
        x, weights = (
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
            for shape, spec in (((4 * ROWS, WIDTH), P(("data", "fsdp"))), ((layers, WIDTH, WIDTH), P(None, "fsdp")))
        )
        folder = tmp_path_factory.mktemp(f"{layers}")
        jax.jit(spread).lower(x, weights).compile({"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True})
        (text,) = folder.glob("*after_codegen.txt")
        return read_schedule(text.read_text(), MESH)

    return compile_for


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
def test_a_small_program_on_a_real_topology(compiled, topology):
    schedule = compiled(topology, LAYERS)
    found = {c.kind: c for c in schedule.collectives}
    assert len(found) == len(schedule.collectives) == 3
    gather, permute, reduce = found["all-gather"], found["collective-permute"], found["all-reduce"]
    assert (gather.axes, gather.times, gather.sent) == (("fsdp",), LAYERS, WIDTH // 2 * WIDTH * 2)
    assert (permute.axes, permute.times) == (("data",), 3 * LAYERS)
    assert permute.sent in (ROWS * WIDTH * 2, ROWS * WIDTH * 4)  # the compiler may keep it in float32
    assert (reduce.axes, reduce.times) == (("data", "fsdp"), 1)
    assert reduce.sent in (1.5 * ROWS * WIDTH * 2, 1.5 * ROWS * WIDTH * 4)
    assert schedule.cycles["MLP"] > 0


def test_cycles_are_linear_in_the_number_of_layers(compiled):
    five, ten, twenty = (sum(compiled("v5e:2x2", layers).cycles.values()) for layers in (5, 10, 20))
    assert twenty - ten == pytest.approx(2 * (ten - five), rel=0.02)
    assert ten > 1.5 * five


@pytest.mark.parametrize(("name", "count", "gib"), [("v5e:2x4", 8, 15.75), ("tpu7x:2x2x1", 8, 94.74)])
def test_topologies(name, count, gib):
    topology = find_topology(name)
    assert (topology.count, len(topology.devices)) == (count, count)
    assert topology.hbm / 2**30 == pytest.approx(gib, rel=1e-3)  # what the compiler names when it refuses a program
    assert topology.chips == count // TPUS[name.partition(":")[0]].devices_per_chip


def test_slices(tmp_path):
    """A sum within each slice, and over the network between the two."""
    topology = find_topology("v5e:2x2", 2)
    assert [device.slice_index for device in topology.devices] == [0] * 4 + [1] * 4
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1}, topology.devices)
    sums = jax.shard_map(
        lambda x: jnp.cos(lax.psum(jnp.sin(lax.psum(x, "fsdp")), "data")),
        mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(), check_vma=False,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    jax.jit(sums).lower(x).compile({"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True})
    (text,) = tmp_path.glob("*after_codegen.txt")
    found = {c.axes: c for c in read_schedule(text.read_text(), dict(mesh.shape)).collectives}
    between, within = found[("slices",)], found[("fsdp",)]
    assert (between.kind, between.times, between.asynchronous) == ("all-reduce", 1, True)
    assert within.times == 1
    assert 0 < between.sent <= ROWS * WIDTH * 4
    assert found.keys() == {("slices",), ("fsdp",)}


@pytest.mark.parametrize("name", ["v5p:3x3x3", "v5e:16x32", "v5e", "v9:2x2", "h100", "h100:0", "cpu:x", ""])
def test_unknown_topologies_are_answered_with_names_that_work(name):
    with pytest.raises(UserError, match="expected") as error:
        find_topology(name)
    assert "\n" not in str(error.value)


# ---- the model of the interconnect ----------------------------------------------------------------------------------


def test_time_of_collectives():
    """v5e, 50 GB/s a link and direction: a line of 4 uses one link, a closed ring of 16 both, two dimensions add up."""
    tpu, small, large = TPUS["v5e"], find_topology("v5e:4x4").devices, find_topology("v5e:16x16").devices

    def at(devices, *places):
        return [i for i, device in enumerate(devices) if tuple(device.coords[:2]) in places]

    def of(group, kind="all-gather", hidden=0):
        return Collective(kind, (), [group], 1e9, 1, True, hidden)

    row = of(at(small, *[(x, 0) for x in range(4)]))
    assert seconds(row, small, tpu) == pytest.approx(1e9 / 50e9)
    assert seconds(of(list(range(16))), small, tpu) == pytest.approx(1e9 / 100e9)
    assert seconds(of(at(large, *[(x, 3) for x in range(16)])), large, tpu) == pytest.approx(1e9 / 100e9)
    assert seconds(of(list(range(256))), large, tpu) == pytest.approx(1e9 / 200e9)
    assert seconds(of(list(range(256)), "collective-permute"), large, tpu) == pytest.approx(1e9 / 50e9)
    assert exposed_seconds(row._replace(hidden_cycles=15_000_000), small, tpu) == pytest.approx(0.01)
    assert exposed_seconds(row._replace(hidden_cycles=15_000_000, asynchronous=False), small, tpu) == 0.02
    assert exposed_seconds(row._replace(hidden_cycles=10**9), small, tpu) == 0
    assert seconds(row._replace(axes=("slices",), groups=[]), small, tpu) == pytest.approx(1e9 / (25e9 / 8))


def test_devices_of_one_chip_share_its_links():
    """tpu7x, two devices a chip: a ring through all of them leaves a chip once, two rings through one each do twice."""
    tpu, devices = TPUS["tpu7x"], find_topology("tpu7x:2x2x1").devices
    ring = Collective("all-gather", (), [list(range(8))], 1e9, 1, True, 0)
    apart = ring._replace(groups=[[i for i, device in enumerate(devices) if device.core_on_chip == 0]])
    assert len(apart.groups[0]) == 4
    assert seconds(ring, devices, tpu) == pytest.approx(1e9 / (2 * tpu.link))
    assert seconds(apart, devices, tpu) == pytest.approx(2e9 / (2 * tpu.link))
