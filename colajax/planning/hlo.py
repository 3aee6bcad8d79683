"""Reads the text of a compiled, scheduled XLA program: computations, instructions, loops, groups of devices."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_HEADER = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"  (ROOT )?%([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_LARGEST_CYCLES = 2**50  # more (some say int64 max) means "not known"


class Instruction(NamedTuple):
    """`%name = shape opcode(arguments), attributes`, the parts as text."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return _NAME.findall(self.arguments)

    def find(self, pattern: str) -> str | None:
        """The first group of a regular expression in the attributes."""
        found = re.search(pattern, self.attributes)
        return found and found[1]

    def computation(self, role: str) -> str | None:
        """The name of the computation under `calls`, `body`, `condition` or `to_apply`."""
        return self.find(rf"\b{role}=%([\w.\-]+)")

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from: "jit(train_step)/jvp()/while/body/attention/dot_general"."""
        return self.find(r'op_name="([^"]*)"') or ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of one execution."""
        found = self.find(r'"estimated_cycles":"(\d+)"')
        return int(found) if found and int(found) < _LARGEST_CYCLES else None


class Computation(NamedTuple):
    """Instructions by name, in the order of the schedule."""

    instructions: dict[str, Instruction]
    root: str


class Program(NamedTuple):
    entry: str
    computations: dict[str, Computation]


def parse(text: str) -> Program:
    """The program in `text`, an HLO module as XLA prints it. Raises ValueError where there is none."""
    computations: dict[str, Computation] = {}
    entry, name = None, None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, instructions, root = header[2], {}, ""
            entry = name if header[1] else entry
        elif name and (found := _INSTRUCTION.match(line)):
            instructions[found[2]] = _instruction(found[2], found[3])
            root = found[2] if found[1] else root
        elif name and line.startswith("}"):
            computations[name] = Computation(instructions, root)
            name = None
    if entry is None:
        raise ValueError("no ENTRY computation in the text of the program")
    return Program(entry, computations)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text) if text[0] == "(" else text.index(" ") - 1
    shape, rest = text[: end + 1], text[end + 2 :]
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    return Instruction(name, shape, opcode, rest[:end], rest[end + 1 :])


def _closing(text: str) -> int:
    """The index of the parenthesis that closes the one at index 0."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def size(shape: str) -> int:
    """Bytes of a shape such as "(bf16[8,128]{1,0:T(8,128)}, u32[])", padding not counted."""
    arrays = _ARRAY.findall(shape)
    return sum(_bits(kind) * math.prod(int(d) for d in dims.split(",") if d) for kind, dims in arrays) // 8


def _bits(kind: str) -> int:
    found = re.match(r"[a-z]+(\d+)", kind)
    return 8 if kind == "pred" else int(found[1]) if found else 0


# ---- loops ----------------------------------------------------------------------------------------------------------


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None where that is not a constant of the program.

    Where the compiler does not say: the condition is `counter < limit`, and start, limit and step of the counter are
    followed to constants."""
    known = loop.find(r'"known_trip_count":\{"n":"(\d+)"')
    if known:
        return int(known)
    condition, body = (program.computations[loop.computation(role)] for role in ("condition", "body"))
    initial = computation.instructions[loop.operands[0]]

    def at_start(index: int) -> int | None:
        return _integer(computation, initial.operands[index], lambda _: None)

    comparison = condition.instructions[condition.root]
    if comparison.opcode != "compare" or "direction=LT" not in comparison.attributes:
        return None
    start, limit = (_integer(condition, name, at_start) for name in comparison.operands)
    index = condition.instructions[comparison.operands[0]].find(r"\bindex=(\d+)")
    if None in (start, limit, index):
        return None
    after = _integer(body, body.instructions[body.root].operands[int(index)], at_start)
    step = after and after - start
    return max(0, -(-(limit - start) // step)) if step and step > 0 else None


def _integer(computation: Computation, name: str, argument: Callable[[int], int | None]) -> int | None:
    """The integer that an instruction gives, or None. argument(i): element i of the computation's tuple."""
    found = computation.instructions[name]
    operands = found.operands

    def value(operand: str) -> int | None:
        return _integer(computation, operand, argument)

    if found.opcode == "constant":
        return int(found.arguments) if re.fullmatch(r"-?\d+", found.arguments) else None
    if found.opcode in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
        return value(operands[0])
    if found.opcode in ("add", "subtract", "multiply"):
        left, right = map(value, operands)
        if left is None or right is None:
            return None
        return {"add": left + right, "subtract": left - right, "multiply": left * right}[found.opcode]
    if found.opcode == "get-tuple-element":
        source, index = computation.instructions[operands[0]], int(found.find(r"\bindex=(\d+)"))
        if source.opcode == "parameter":
            return argument(index)
        return value(source.operands[index]) if source.opcode == "tuple" else None
    return None


# ---- groups of devices ----------------------------------------------------------------------------------------------


def device_groups(attributes: str, devices: int) -> list[list[int]]:
    """The groups in which a collective exchanges data, of positions in the mesh's flat list of devices.

    XLA writes them as lists ({{0,1},{2,3}}), as a reshaped and transposed range ([2,2]<=[2,2]T(1,0)), as axes of a mesh
    of its own (mesh['x'=2,'y'=2] {'y'}, where 'y':(1)2 is a part of an axis and device_ids=([2,2]T(1,0)) before it the
    order in which devices fill it), or as pairs of source and target. Raises ValueError on another form."""
    if pairs := re.search(r"source_target_pairs=\{(.*?\})\}", attributes):
        return _lists(pairs[1])
    found = re.search(r"replica_groups=(.*)", attributes)
    if not found or found[1].startswith("{}"):
        return [list(range(devices))]
    text = found[1]
    if text.startswith("{"):
        return _lists(text[1 : text.index("}}") + 1])
    if iota := re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _range(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2])).tolist()
    if mesh := re.match(r"mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", text):
        return _mesh_groups(mesh[1], mesh[4], _range(mesh[2], mesh[3]) if mesh[2] else None)
    raise ValueError(f"unknown form of replica_groups: {text[:80]}")


def _range(shape: str, order: str | None) -> np.ndarray:
    """0, 1, ... reshaped and, where an order of its axes is given, transposed; flat."""
    sizes = [int(d) for d in shape.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose([int(p) for p in order.split(",")]) if order else ids).reshape(-1)


def _lists(text: str) -> list[list[int]]:
    return [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]


def _mesh_groups(axes: str, used: str, devices: np.ndarray | None) -> list[list[int]]:
    """devices: in the order in which they fill the mesh; None for 0, 1, ..."""
    sizes = {name: int(length) for name, length in re.findall(r"'(.*?)'=(\d+)", axes)}
    parts = [(name, int(before or 1), int(length or 0) or sizes[name])
             for name, before, length in re.findall(r"'(.*?)'(?::\((\d+)\)(\d+))?", used)]  # fmt: skip
    shape, inside = [], []
    for name, length in sizes.items():
        own = sorted((before, width) for axis, before, width in parts if axis == name)
        done = 1
        for before, width in own:
            shape += [before // done, width]
            inside.append(len(shape) - 1)
            done = before * width
        shape.append(length // done)
    outside = [i for i in range(len(shape)) if i not in inside]
    width = math.prod(shape[i] for i in inside)
    ids = (np.arange(math.prod(shape)) if devices is None else devices).reshape(shape)
    return ids.transpose(outside + inside).reshape(-1, width).tolist()


def varying_axes(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of `mesh` ({name: size}, row-major) along which the devices of one group differ."""
    coordinates = [np.stack(np.unravel_index(group, tuple(mesh.values()))) for group in groups]
    varies = np.any([(c != c[:, :1]).any(1) for c in coordinates], axis=0)
    return tuple(name for name, differs in zip(mesh, varies, strict=True) if differs)
