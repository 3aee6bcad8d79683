"""Reads a compiled, scheduled XLA program: its computations, loops, matrix products and groups of devices.

A program is XLA's HloModuleProto. Its schema is in no package that is small enough to depend on, so the fields that are
read are declared here by their numbers, which XLA keeps (xla/service/hlo.proto, xla/xla_data.proto). Where the compiler
says something in a way that is not known here, the answer is an UnreadableProgram, and never a guess.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from colajax.messages import message_class

_Module = message_class("""
Shape: int32 element_type 2, int64* dimensions 3, Shape* tuple_shapes 4
Literal: int32* s32s 4, int64* s64s 5, uint32* u32s 6, uint64* u64s 7
Metadata: string op_name 2
Attribute: string key 1, string value 2
Attributes: Attribute* map 1
Pair: int64 source 1, int64 target 2
Group: int64* replica_ids 1
Iota: int64 groups 1, int64 width 2, int64* dims 3, int32* order 4
DeviceList: Group* groups 1, Iota iota 2
Axis: string name 1, int64 size 2
Order: int64* dims 1, int32* order 2
Mesh: Axis* axes 1, int64* ids 2, Order iota 3
Part: int64 before 1, int64 size 2
AxisUse: int64 index 1, Part part 2
MeshGroups: Mesh mesh 1, AxisUse* axes 2
WindowDimension: int64 size 1, int64 stride 2, int64 padding_low 3, int64 window_dilation 5, int64 base_dilation 6
Window: WindowDimension* dimensions 1
DotDimensions: int64* lhs_contracting 1
ConvolutionDimensions: int64 kernel_input_feature 3, int64 kernel_output_feature 4, int64 input_batch 7, \
int64* input_spatial 11, int64* output_spatial 12
Instruction: string name 1, string opcode 2, Shape shape 3, Metadata metadata 7, Literal literal 8, \
int64 tuple_index 13, Window window 15, ConvolutionDimensions convolution 16, int64 channel_id 26, \
string custom_call_target 28, DotDimensions dot 30, int64 id 35, int64* operands 36, int64* called 38, \
bytes backend_config 43, Group* replica_groups 49, int64 feature_groups 50, Pair* pairs 52, int64 batch_groups 58, \
string direction 63, Attributes attributes 68, bool global_ids 71, DeviceList device_list 87, Iota iota_groups 92, \
MeshGroups mesh_groups 93
Computation: string name 1, Instruction* instructions 2, int64 id 5, int64 root_id 6
Sequence: int64* instruction_ids 1
Scheduled: int64 key 1, Sequence value 2
Schedule: Scheduled* sequences 1
Module: Computation* computations 3, int64 entry_id 6, Schedule schedule 7
""", "Module")  # fmt: skip
# Bits of an element by xla.PrimitiveType; what is not an array (tuples, tokens, opaque values) has none.
_KINDS = {8: (1, 2, 6, 19, 20, 23, 24, 25, 28, 29, 33), 16: (3, 7, 10, 16), 32: (4, 8, 11), 64: (5, 9, 12, 15),
          128: (18,), 4: (21, 22, 32), 2: (26, 27), 1: (30, 31)}  # fmt: skip
_BITS = {kind: bits for bits, kinds in _KINDS.items() for kind in kinds}
_LARGEST_CYCLES = 2**50  # more (some say int64 max) means "not known"


class UnreadableProgram(Exception):
    """The program says something in a way that is not known here."""


class Program(NamedTuple):
    """Computations and instructions by id; a computation's instructions in the order of the schedule, its root last."""

    entry: int
    computations: dict[int, list]
    instructions: dict[int, object]
    users: dict[int, list]  # of an instruction, in its computation


def parse(serialized: bytes) -> Program:
    """The program of a serialized HloModuleProto."""
    module = _Module.FromString(serialized)
    instructions = {i.id: i for computation in module.computations for i in computation.instructions}
    order = {found.key: found.value.instruction_ids for found in module.schedule.sequences}
    computations, users = {}, {}
    for computation in module.computations:
        ids = order.get(computation.id) or [i.id for i in computation.instructions]
        body = [instructions[i] for i in ids if i != computation.root_id]
        computations[computation.id] = [*body, instructions[computation.root_id]]
        for instruction in computation.instructions:
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)
    if module.entry_id not in computations or module.entry_id not in order:
        raise UnreadableProgram("no schedule of its entry computation")
    return Program(module.entry_id, computations, instructions, users)


def config(instruction) -> dict:
    """What the backend noted of an instruction."""
    return json.loads(instruction.backend_config) if instruction.backend_config else {}


def cycles(instruction) -> int | None:
    """The compiler's estimate of one execution."""
    found = int(config(instruction).get("window_config", {}).get("estimated_cycles", _LARGEST_CYCLES))
    return found if found < _LARGEST_CYCLES else None


def size(shape) -> int:
    """Bytes of an array or of the arrays of a tuple, padding not counted."""
    inside = sum(size(part) for part in shape.tuple_shapes)
    return inside + _BITS.get(shape.element_type, 0) * math.prod(shape.dimensions) // 8


def flops(program: Program, instruction) -> int:
    """Operations (twice the multiplications) of the matrix products in an instruction and in what it calls."""
    inside = sum(flops(program, i) for called in instruction.called for i in program.computations[called])
    if instruction.opcode == "dot":
        left = program.instructions[instruction.operands[0]].shape.dimensions
        return 2 * math.prod(instruction.shape.dimensions) * math.prod(left[i] for i in instruction.dot.lhs_contracting)
    return inside + (_convolution_flops(program, instruction) if instruction.opcode == "convolution" else 0)


def _convolution_flops(program: Program, instruction) -> int:
    """The compiler writes every product as a convolution, a batch of them with a dimension that is dilated or padded:
    what is multiplied with padding is not counted."""
    image, kernel = (program.instructions[i].shape.dimensions for i in instruction.operands)
    numbers, count = instruction.convolution, 1
    for place, window in enumerate(instruction.window.dimensions):
        length = image[numbers.input_spatial[place]]
        outputs = instruction.shape.dimensions[numbers.output_spatial[place]]
        at = np.add.outer(np.arange(window.size) * window.window_dilation, np.arange(outputs) * window.stride)
        at -= window.padding_low
        count *= int(((at >= 0) & (at % window.base_dilation == 0) & (at // window.base_dilation < length)).sum())
    # The kernel's input features are those of one group.
    features = kernel[numbers.kernel_input_feature] * kernel[numbers.kernel_output_feature]
    return 2 * count * features * image[numbers.input_batch] // max(1, instruction.batch_groups)


# ---- loops ----------------------------------------------------------------------------------------------------------


def trip_count(program: Program, loop) -> int:
    """How often the body of a `while` runs. Where the compiler does not say: the condition is `counter < limit`, and
    start, limit and step of the counter are followed to constants."""
    known = config(loop).get("known_trip_count", {}).get("n")
    if known:
        return int(known)
    body, condition = (program.computations[called][-1] for called in loop.called)
    initial = program.instructions[loop.operands[0]]

    def at_start(index: int) -> int | None:
        return _integer(program, initial.operands[index], lambda _: None) if initial.opcode == "tuple" else None

    if condition.opcode != "compare" or condition.direction != "LT":
        raise UnreadableProgram(f"a loop of unknown length ({loop.metadata.op_name})")
    start, limit = (_integer(program, operand, at_start) for operand in condition.operands)
    counter = program.instructions[condition.operands[0]].tuple_index
    after = _integer(program, body.operands[counter], at_start)
    if None in (start, limit, after) or after <= start:
        raise UnreadableProgram(f"a loop of unknown length ({loop.metadata.op_name})")
    return max(0, -(-(limit - start) // (after - start)))


def _integer(program: Program, operand: int, argument: Callable[[int], int | None]) -> int | None:
    """The integer that an instruction gives, or None. argument(i): element i of the computation's tuple."""
    found = program.instructions[operand]
    if found.opcode == "constant":
        values = [*found.literal.s32s, *found.literal.s64s, *found.literal.u32s, *found.literal.u64s]
        return values[0] if len(values) == 1 else None
    if found.opcode in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
        return _integer(program, found.operands[0], argument)
    if found.opcode in ("add", "subtract", "multiply"):
        left, right = (_integer(program, i, argument) for i in found.operands)
        if left is None or right is None:
            return None
        return {"add": left + right, "subtract": left - right, "multiply": left * right}[found.opcode]
    if found.opcode == "get-tuple-element":
        source = program.instructions[found.operands[0]]
        if source.opcode == "parameter":
            return argument(found.tuple_index)
        return _integer(program, source.operands[found.tuple_index], argument) if source.opcode == "tuple" else None
    return None


# ---- groups of devices ----------------------------------------------------------------------------------------------


def device_groups(instruction, devices: int) -> list[list[int]]:
    """The groups in which a collective exchanges data, of positions in the mesh's flat list of devices: lists, a
    reshaped and transposed range, axes of a mesh of the compiler's own or parts of them, or pairs."""
    if instruction.pairs:
        return [[pair.source, pair.target] for pair in instruction.pairs]
    lists = instruction.replica_groups or instruction.device_list.groups
    if lists:
        return [list(group.replica_ids) for group in lists]
    for iota in (instruction.iota_groups, instruction.device_list.iota):
        if iota.groups:
            return _range(iota.dims, iota.order).reshape(iota.groups, iota.width).tolist()
    if instruction.mesh_groups.mesh.axes:
        return _mesh_groups(instruction.mesh_groups)
    if instruction.global_ids:  # then the compiler has to name them
        raise UnreadableProgram(f"the groups of devices of {instruction.opcode}")
    return [list(range(devices))]


def _range(dims: Sequence[int], order: Sequence[int]) -> np.ndarray:
    """0, 1, ... reshaped and, where an order of its axes is given, transposed; flat."""
    ids = np.arange(math.prod(dims)).reshape(tuple(dims))
    return (ids.transpose(tuple(order)) if order else ids).reshape(-1)


def _mesh_groups(found) -> list[list[int]]:
    mesh = found.mesh
    shape, inside = [], []
    for place, axis in enumerate(mesh.axes):
        used = [use.part for use in found.axes if use.index == place]
        done = 1
        for before, width in sorted((part.before or 1, part.size or axis.size) for part in used):
            shape += [before // done, width]
            inside.append(len(shape) - 1)
            done = before * width
        shape.append(axis.size // done)
    ids = np.array(mesh.ids) if mesh.ids else _range(mesh.iota.dims or shape, mesh.iota.order)
    outside = [i for i in range(len(shape)) if i not in inside]
    width = math.prod(shape[i] for i in inside)
    return ids.reshape(shape).transpose(outside + inside).reshape(-1, width).tolist()


def varying_axes(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of `mesh` ({name: size}, row-major) along which the devices of one group differ."""
    coordinates = [np.stack(np.unravel_index(group, tuple(mesh.values()))) for group in groups]
    varies = np.any([(c != c[:, :1]).any(1) for c in coordinates], axis=0)
    return tuple(name for name, differs in zip(mesh, varies, strict=True) if differs)
