"""What the compiler's schedule says of one step: compute cycles by part, and every exchange between devices.

The compiler estimates the cycles of each instruction that computes. An instruction counts as often as the loops around
it run. Collectives have no estimate: what is read off is how many bytes a device sends, along which axes of the mesh,
and how many cycles of compute are scheduled between a collective's start and its end.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from colajax.planning import hlo

# A named scope of the traced program -> the part of a step, the first that an operation's name holds.
PARTS = (
    ("optimizer", "optimizer"),
    ("cross_entropy", "cross-entropy"),
    ("unembedding", "cross-entropy"),
    ("attention", "attention"),
    ("mlp", "MLP"),
    ("modulation", "modulation"),
    ("embedding", "embedding"),
)
OTHER = "other (norms, residuals, copies)"

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# Instructions that take time of their own, though the compiler may give no estimate for them.
_WORK = ("fusion", "custom-call", "convolution", "dot", "sort", "gather", "scatter", "reduce", "reshape", "conditional")
# Custom calls that do nothing.
_FREE = ("AllocateBuffer", "ConcatBitcast", "GatherScatterIndicesBitpacked", "AssumeGatherIndicesInBound", "SliceId",
         "PrepareAsyncCallStart", "PrepareAsyncCallDone")  # fmt: skip
# What crosses from slice to slice is sent and received by the host; the type of a transfer -> the kind.
NETWORK = "slices"
_TRANSFERS = {"ALL_REDUCE": "all-reduce", "ALL_GATHER": "all-gather", "REDUCE_SCATTER": "reduce-scatter",
              "ALL_TO_ALL": "all-to-all", "ONE_TO_ONE": "collective-permute"}  # fmt: skip


class Collective(NamedTuple):
    """One collective, `times` executed a step."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, along which the devices of a group differ; NETWORK between slices
    groups: list[list[int]]  # of positions in the mesh's flat list of devices; none between slices
    sent: float  # bytes that a device sends at one execution: on a ring; between slices, what it hands to the network
    times: int
    asynchronous: bool
    hidden_cycles: int  # of compute scheduled between start and end, at one execution


class Schedule(NamedTuple):
    cycles: Counter  # {part: cycles a step}
    recomputed: int  # of these cycles, those of the backward pass's second forward pass
    collectives: list[Collective]
    untimed: Counter  # {what: executions a step} of work that the compiler gives no cycles for
    flops: int  # of the matrix products of a step
    untimed_flops: int  # of these, in instructions without cycles


def read_schedule(serialized: bytes, mesh: Mapping[str, int]) -> Schedule:
    """From the compiler's program, a serialized HloModuleProto; mesh: {axis: size} in the order of its devices.

    Raises hlo.UnreadableProgram, for one, where the length of a loop is not found."""
    program = hlo.parse(serialized)
    reader = _Reader(program, mesh)
    reader.visit(program.entry, 1)
    return Schedule(
        reader.cycles, reader.recomputed, reader.collectives, reader.untimed, reader.flops, reader.untimed_flops
    )


def _part_of(op_name: str) -> str:
    return next((part for scope, part in PARTS if re.search(rf"\b{scope}\b", op_name)), OTHER)


@dataclasses.dataclass
class _Span:
    """A collective from its start to its end, in cycles since the start of its computation."""

    instruction: object
    start: int
    end: int
    asynchronous: bool = False


class _Reader:
    def __init__(self, program: hlo.Program, mesh: Mapping[str, int]):
        self.program, self.mesh = program, mesh
        self.cycles, self.untimed, self.recomputed, self.collectives = Counter(), Counter(), 0, []
        self.flops = self.untimed_flops = 0

    def visit(self, computation: int, times: int) -> int:
        """Counts a computation that is executed `times` a step; returns the cycles of one execution."""
        elapsed, spans = 0, {}
        for instruction in self.program.computations[computation]:
            self._follow(spans, instruction, elapsed)
            elapsed += self._cycles(instruction, times)
        self.collectives += [self._collective(span, times) for span in spans.values()]
        return elapsed

    def _cycles(self, instruction, times: int) -> int:
        if instruction.opcode == "while":
            count = hlo.trip_count(self.program, instruction)
            return count * self.visit(instruction.called[0], times * count)
        if instruction.opcode == "call":
            return self.visit(instruction.called[0], times)
        found, op_name = hlo.cycles(instruction), instruction.metadata.op_name
        products = hlo.flops(self.program, instruction) * times
        self.flops += products
        if found is not None:
            self.cycles[_part_of(op_name)] += found * times
            self.recomputed += found * times * ("rematted_computation" in op_name)
            return found
        self.untimed_flops += products
        opcode, target = instruction.opcode, instruction.custom_call_target
        if opcode in _WORK and target not in _FREE and not self._within(instruction):
            self.untimed[f"{opcode} {target}" if target else opcode] += times
        return 0

    # ---- collectives ------------------------------------------------------------------------------------------------

    def _follow(self, spans: dict, instruction, elapsed: int) -> None:
        """Opens, extends or ends the span that an instruction belongs to, if it does to one.

        A collective is one instruction; or a start and a done (with an update between where it runs on a SparseCore,
        which has its operands from then on); or fusions that all hold it, with compute fused to those between; or,
        from slice to slice, a send and a recv of the host that meet under one name.
        """
        opcode, source = instruction.opcode, next(iter(instruction.operands), None)
        rendezvous = _attribute(instruction, "_xla_host_transfer_rendezvous")
        if opcode == "send" and rendezvous:
            spans[rendezvous] = _Span(instruction, elapsed, elapsed)
        if opcode == "recv" and rendezvous in spans:
            spans[instruction.id] = spans.pop(rendezvous)
        if opcode.endswith(("-done", "-update")) and source in spans:
            span = spans[source]
            span.end, span.asynchronous = elapsed, True
            if opcode == "async-update":
                span.start = elapsed
                spans[instruction.id] = spans.pop(source)
        held = [instruction] if opcode.removesuffix("-start") in KINDS else self._within(instruction)
        for inner in held:
            fused = "async_collective_fusion_config" in hlo.config(inner)
            key = ("channel", inner.channel_id) if fused else instruction.id
            if key in spans:
                spans[key].end, spans[key].asynchronous = elapsed, True
            else:
                spans[key] = _Span(inner, elapsed, elapsed)

    def _within(self, instruction) -> list:
        """The collectives inside a fusion or an asynchronous call."""
        return list(self._search(instruction)) if instruction.opcode in ("fusion", "async-start") else []

    def _search(self, instruction) -> Iterator:
        for called in instruction.called:
            for inner in self.program.computations[called]:
                if inner.opcode in KINDS:
                    yield inner
                elif inner.opcode in ("fusion", "call", "custom-call", "async-start"):
                    yield from self._search(inner)

    def _collective(self, span: _Span, times: int) -> Collective:
        instruction = span.instruction
        operand = sum(hlo.size(self.program.instructions[i].shape) for i in instruction.operands)
        if instruction.opcode == "send":
            kind = _TRANSFERS.get(_attribute(instruction, "_xla_megascale_transfer_type"), "transfer")
            sent = hlo.size(self.program.instructions[instruction.operands[0]].shape)
            return Collective(kind, (NETWORK,), [], sent, times, span.asynchronous, span.end - span.start)
        kind = instruction.opcode.removesuffix("-start")
        users = self.program.users.get(instruction.id, [])
        if kind == "all-reduce" and [user.opcode for user in users] == ["dynamic-slice"]:  # all but a slice is dropped
            kind = "reduce-scatter"
        groups = hlo.device_groups(instruction, math.prod(self.mesh.values()))
        others, size = len(groups[0]) - 1, len(groups[0])
        sent = {
            "all-gather": operand * others,
            "all-reduce": 2 * operand * others / size,
            "reduce-scatter": operand * others / size,
            "all-to-all": operand * others / size,
        }.get(kind, operand)
        axes = hlo.varying_axes(groups, self.mesh)
        return Collective(kind, axes, groups, sent, times, span.asynchronous, span.end - span.start)


def _attribute(instruction, key: str) -> str | None:
    return next((found.value for found in instruction.attributes.map if found.key == key), None)
