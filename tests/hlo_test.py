"""Reading compiled programs of known content, which XLA itself serializes from their text."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from jaxlib import _hlo

from colajax.planning import hlo
from colajax.planning.hlo import UnreadableProgram
from colajax.planning.schedule import read_schedule

MESH = {"data": 2, "fsdp": 2, "tensor": 1}

# As the compiler writes it, layouts and most of backend_config left out: a loop of 7 rounds from 1 to 15 in steps of 2.
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%add.s32 (a.1: s32[], b.1: s32[]) -> s32[] {
  %a.1 = s32[] parameter(0)
  %b.1 = s32[] parameter(1)
  ROOT %sum.1 = s32[] add(%a.1, %b.1)
}

%smaller (a.2: s32[], b.2: s32[]) -> pred[] {
  %a.2 = s32[] parameter(0)
  %b.2 = s32[] parameter(1)
  ROOT %lt = pred[] compare(%a.2, %b.2), direction=LT
}

%multiplied (p.3: bf16[8,128]) -> bf16[8,128] {
  %p.3 = bf16[8,128]{1,0} parameter(0)
  %weights = bf16[128,128]{1,0} broadcast(bf16[] constant(2)), dimensions={}
  ROOT %product = bf16[8,128]{1,0} convolution(%p.3, %weights), dim_labels=bf_io->bf
}

%doubled (p.4: bf16[8,128]) -> bf16[8,128] {
  %p.4 = bf16[8,128]{1,0} parameter(0)
  ROOT %twice = bf16[8,128]{1,0} add(%p.4, %p.4)
}

%all-reduce-scatter.1 (p.0: bf16[8,128], at: s32[]) -> bf16[4,128] {
  %p.0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %all-reduce.9 = bf16[8,128]{1,0:T(8,128)(2,1)} all-reduce(%p.0), channel_id=4, replica_groups={{0,1},{2,3}}, use_global_device_ids=true, to_apply=%add
  ROOT %slice.1 = bf16[4,128]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.9, %at, %zero), dynamic_slice_sizes={4,128}
}

%start (p.1: f32[4,128]) -> (f32[4,128], f32[8,128]) {
  %p.1 = f32[4,128]{1,0} parameter(0)
  %all-gather.5 = f32[8,128]{1,0} all-gather(%p.1), channel_id=5, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}, use_global_device_ids=true, backend_config={"async_collective_fusion_config":{}}
  ROOT %call.1 = (f32[4,128]{1,0}, f32[8,128]{1,0}) custom-call(%all-gather.5), custom_call_target="AsyncCollectiveStart"
}

%sparse (p.2: s32[16]) -> s32[16] {
  %p.2 = s32[16]{0} parameter(0)
  ROOT %all-reduce.6 = s32[16]{0} all-reduce(%p.2), channel_id=6, replica_groups=mesh['a'=4] {'a'}, use_global_device_ids=true, to_apply=%add.s32
}, execution_thread="sparsecore"

%body (carried: (s32[], bf16[8,128], s32[], f32[4,128])) -> (s32[], bf16[8,128], s32[], f32[4,128]) {
  %carried = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}, f32[4,128]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carried), index=0
  %x = bf16[8,128]{1,0} get-tuple-element(%carried), index=1
  %by = s32[]{:T(128)} get-tuple-element(%carried), index=2
  %w = f32[4,128]{1,0} get-tuple-element(%carried), index=3
  %matmul = bf16[8,128]{1,0} fusion(%x), kind=kOutput, calls=%multiplied, metadata={op_name="jit(step)/transpose(jvp())/while/body/checkpoint/rematted_computation/mlp/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %begin = (f32[4,128]{1,0}, f32[8,128]{1,0}) fusion(%w), kind=kCustom, calls=%start
  %scores = bf16[8,128]{1,0} fusion(%x), kind=kLoop, calls=%doubled, metadata={op_name="jit(step)/jvp(attention)/dot_general"}, backend_config={"window_config":{"estimated_cycles":"300"}}
  %copied = bf16[8,128]{1,0} copy(%x), backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  %finish = (f32[4,128]{1,0}, f32[8,128]{1,0}) fusion(%w), kind=kCustom, calls=%start
  %scattered = bf16[4,128]{1,0} fusion(%x, %i), kind=kCustom, calls=%all-reduce-scatter.1
  %next = s32[]{:T(128)} add(%i, %by)
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}, f32[4,128]{1,0}) tuple(%next, %matmul, %by, %w)
}

%condition (carried.1: (s32[], bf16[8,128], s32[], f32[4,128])) -> pred[] {
  %carried.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}, f32[4,128]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%carried.1), index=0
  %limit = s32[]{:T(128)} constant(14)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.0: bf16[8,128], y.0: s32[16], z.0: f32[4,128], n.0: s32[]) -> bf16[8,128] {
  %x.0 = bf16[8,128]{1,0} parameter(0)
  %y.0 = s32[16]{0} parameter(1)
  %z.0 = f32[4,128]{1,0} parameter(2)
  %n.0 = s32[]{:T(128)} parameter(3)
  %one = s32[]{:T(128)} constant(1)
  %two = s32[]{:T(128)} constant(2)
  %first = s32[]{:T(128)} copy(%one)
  %tuple.0 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}, f32[4,128]{1,0}) tuple(%first, %x.0, %two, %z.0)
  %send = ((s32[16]), s32[16], s32[]) async-start(%y.0), async_execution_thread="sparsecore", calls=%sparse
  %early = bf16[8,128] negate(%x.0), backend_config={"window_config":{"estimated_cycles":"50"}}
  %send.1 = ((s32[16]), s32[16], s32[]) async-update(%send)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}, f32[4,128]{1,0}) while(%tuple.0), condition=%condition, body=%body
  %arrived = s32[16] async-done(%send.1)
  %sorted = s32[16]{0} sort(%arrived), dimensions={0}, to_apply=%smaller
  ROOT %result = bf16[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def wire(text: str) -> bytes:
    """A program as XLA itself serializes it."""
    return _hlo.hlo_module_from_text(text).as_serialized_hlo_module_proto()


def read(text: str = PROGRAM):
    return read_schedule(wire(text), MESH)


def test_a_program_of_known_content():
    schedule = read()
    assert schedule.cycles == {"MLP": 7000, "attention": 2100, "other (norms, residuals, copies)": 50}
    assert schedule.recomputed == 7000
    assert schedule.untimed == {"sort": 1}
    assert (schedule.flops, schedule.untimed_flops) == (7 * 2 * 8 * 128 * 128, 0)
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
        ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"31"}}', 31),
    ],
)
def test_trips_of_a_loop(old, new, trips):
    assert read(PROGRAM.replace(old, new)).cycles["MLP"] == 1000 * trips


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("copy(%one)", "copy(%n.0)"),
        ("direction=LT", "direction=NE"),
        ("%two = s32[]{:T(128)} constant(2)", "%two = s32[]{:T(128)} constant(-2)"),
        ("add(%i, %by)", "maximum(%i, %by)"),
    ],
)
def test_a_loop_of_unknown_length_is_refused(old, new):
    assert old in PROGRAM
    with pytest.raises(UnreadableProgram, match="loop of unknown length"):
        read(PROGRAM.replace(old, new))


def test_matrix_products_without_an_estimate_are_counted():
    schedule = read(PROGRAM.replace('"estimated_cycles":"1000"', '"estimated_cycles":"9223372036854775807"'))
    assert schedule.untimed_flops == schedule.flops > 0


def groups_of(written: str, devices: int) -> list[list[int]]:
    """What is read of a collective with its groups written so."""
    text = """HloModule m, num_partitions=DEVICES
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  ROOT %r = f32[8] COLLECTIVE
}
"""
    kind = "collective-permute" if written.startswith("source") else "all-reduce"
    more = "" if kind == "collective-permute" else ", use_global_device_ids=true, to_apply=%add"
    if written.endswith("={}"):
        more = ", to_apply=%add"
    text = text.replace("DEVICES", str(devices)).replace("COLLECTIVE", f"{kind}(%p), channel_id=1, {written}{more}")
    module = hlo._Module.FromString(wire(text))
    (collective,) = (i for c in module.computations for i in c.instructions if i.opcode == kind)
    return hlo.device_groups(collective, devices)


@given(st.lists(st.integers(2, 4), min_size=1, max_size=3), st.data())
def test_groups_in_every_notation(sizes, data):
    """Groups along some axes of a mesh: the notation of meshes and that of ranges, against lists by coordinates."""
    inside = data.draw(st.lists(st.sampled_from(range(len(sizes))), min_size=1, unique=True).map(sorted))
    groups: dict[tuple, list[int]] = {}
    for device, place in enumerate(np.ndindex(*sizes)):
        groups.setdefault(tuple(p for i, p in enumerate(place) if i not in inside), []).append(device)
    expected = sorted(groups.values())
    width, outside = len(expected[0]), [i for i in range(len(sizes)) if i not in inside]
    axes = ",".join(f"'x{i}'={size}" for i, size in enumerate(sizes))
    used = ",".join(f"'x{i}'" for i in inside)
    order = outside + inside
    turned = f"{','.join(map(str, sizes))}]T({','.join(map(str, order))})"
    range_of = turned if order != sorted(order) else f"{math.prod(sizes)}]"
    lists = ",".join("{" + ",".join(map(str, group)) + "}" for group in expected)
    for written in (
        f"mesh[{axes}] {{{used}}}", f"[{len(expected)},{width}]<=[{range_of}", f"{{{lists}}}",
    ):  # fmt: skip
        assert sorted(groups_of(f"replica_groups={written}", math.prod(sizes))) == expected
    mesh = {f"x{i}": size for i, size in enumerate(sizes)}
    assert hlo.varying_axes(expected, mesh) == tuple(f"x{i}" for i in inside if sizes[i] > 1)


def test_groups_of_a_part_of_an_axis_and_of_pairs():
    assert groups_of("replica_groups=mesh['x'=8] {'x':(2)2}", 8) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    # Of 4 x 2 devices, the second index is the mesh's first axis.
    turned = "replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x'}"
    assert groups_of(turned, 8) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert groups_of("replica_groups=mesh['x'=2,'y'=2], device_ids=(3,1,2,0) {'y'}", 4) == [[3, 1], [2, 0]]
    assert groups_of("source_target_pairs={{0,1},{1,0}}", 4) == [[0, 1], [1, 0]]
    assert groups_of("replica_groups={}", 3) == [[0, 1, 2]]
    unknown = hlo._Module().computations.add().instructions.add(opcode="all-reduce", global_ids=True)
    with pytest.raises(UnreadableProgram, match="groups of devices of all-reduce"):
        hlo.device_groups(unknown, 4)
