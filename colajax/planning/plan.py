"""The plan of a run: memory, time of a step, and what it takes to reach a target.

Time on a TPU is the compiler's schedule at the assumed clock, plus what the model of `interconnect` says communication
adds to it. Nothing has run: schedules are pessimistic where memory is the bound, know nothing of kernels written by
hand, of input, logging, evaluation, saving or failures, and take every chip to be as fast as the others. Where there is
no compiler, memory is that of `memory.activation_bytes`, and time follows from an assumed share of the peak.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, AxisType

from colajax.parallel.batch import check_batch
from colajax.parallel.mesh import AXES, mesh_shape
from colajax.planning.compiled import CompiledStep, compile_step
from colajax.planning.interconnect import exposed_seconds, seconds
from colajax.planning.memory import activation_bytes, state_bytes, whole_bytes
from colajax.planning.topology import Topology
from colajax.train.metrics import PEAK_FLOPS
from colajax.train.optimizer import make_optimizer
from colajax.train.state import abstract_state

ASSUMED = 0.4  # of a GPU's peak, in matrix products of which full rematerialisation does a third more
LATEST_KEPT = 2  # checkpoints, as `train.checkpoint` does


def compiled_plan(config, make_stage: Callable, topology: Topology) -> dict:
    """The plan for a TPU topology. `fits` is False, and there is nothing about time, where the compiler refuses."""
    step = compile_step(config, make_stage, topology)
    plan = _facts(config, make_stage, topology, dict(step.mesh.shape)) | {"how": "compiled"}
    plan |= {"compile_seconds": step.seconds, "memory": step.memory, "fits": step.schedule is not None}
    return plan | _time_on_tpu(plan, step, topology) if plan["fits"] else plan


def analytic_plan(config, make_stage: Callable, topology: Topology) -> dict:
    """The plan without a compiler; no time for a device whose peak is not in a table."""
    mesh = dict(zip(AXES, mesh_shape(config.mesh, topology.count), strict=True))
    _, state = _abstract(config, make_stage, mesh)
    memory = state_bytes(state)
    memory["activations"] = activation_bytes(config, make_stage, state, mesh)
    memory["peak"] = sum(memory.values())
    plan = _facts(config, make_stage, topology, mesh) | {"how": "analytic", "memory": memory}
    plan["fits"] = topology.hbm is None or memory["peak"] <= topology.hbm
    if plan["peak_flops"]:
        mfu = ASSUMED * (3 / 4 if config.remat == "full" else 1)
        plan |= {"mfu": mfu, "step_seconds": plan["useful_flops"] / (plan["peak_flops"] * mfu)}
        plan["tokens_per_second"] = plan["tokens"] / plan["step_seconds"]
    return plan


def _abstract(config, make_stage: Callable, mesh: dict[str, int]):
    """(stage, state of ShapeDtypeStructs) on a mesh without devices. Raises UserError as training does."""
    abstract = AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))
    check_batch(abstract, config.batch_size, config.accumulation_steps)
    stage = make_stage(config, 0)
    optimizer = make_optimizer(config.optimizer, jax.eval_shape(stage.init, jax.random.key(0)), config.total_steps)
    return stage, abstract_state(stage, optimizer, abstract)


def _facts(config, make_stage: Callable, topology: Topology, mesh: dict[str, int]) -> dict:
    stage, state = _abstract(config, make_stage, mesh)
    peak = next((flops for kind, flops in PEAK_FLOPS if kind in topology.device_kind.removeprefix("NVIDIA ")), None)
    tokens = config.batch_size * config.sequence_length
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "devices": topology.count,
        "mesh": mesh,
        "batch_size": config.batch_size,
        "sequence_length": config.sequence_length,
        "accumulation_steps": config.accumulation_steps,
        "remat": config.remat,
        "available": topology.hbm,
        "tokens": tokens,
        "useful_flops": stage.flops(config.batch_size, stage.trainable(0)),
        "peak_flops": peak and peak * topology.count,
        "eflops_per_step": 6 * stage.compute_params() * tokens / 1e18,
        "checkpoint_bytes": whole_bytes(state),
    }


def _time_on_tpu(plan: dict, step: CompiledStep, topology: Topology) -> dict:
    schedule, tpu, devices = step.schedule, topology.tpu, list(step.mesh.devices.flat)
    rows: dict[tuple, dict] = {}
    for collective in schedule.collectives:
        key = (" x ".join(collective.axes), collective.kind, collective.asynchronous)
        row = rows.setdefault(key, dict.fromkeys(("times", "bytes", "seconds", "exposed_seconds"), 0))
        row["times"] += collective.times
        row["bytes"] += collective.sent * collective.times
        row["seconds"] += seconds(collective, devices, tpu) * collective.times
        row["exposed_seconds"] += exposed_seconds(collective, devices, tpu) * collective.times
    names = ("axes", "kind", "asynchronous")
    communication = [dict(zip(names, key, strict=True)) | row for key, row in rows.items()]
    communication.sort(key=lambda row: -row["bytes"])
    cycles = sum(schedule.cycles.values())
    exposed = sum(row["exposed_seconds"] for row in communication)
    step_seconds = cycles / tpu.clock + exposed
    return {
        "clock": tpu.clock,
        "cycles": dict(schedule.cycles.most_common()),
        "cycles_per_chip": cycles,
        "recomputed_cycles": schedule.recomputed,
        "untimed": dict(schedule.untimed),
        "communication": communication,
        "communication_bytes_per_chip": sum(row["bytes"] for row in communication),
        "exposed_seconds": exposed,
        "step_seconds": step_seconds,
        "mfu": plan["useful_flops"] / (plan["peak_flops"] * step_seconds),
        "tokens_per_second": plan["tokens"] / step_seconds,
    }


def target(plan: dict, config, *, steps: int | None = None, eflops: float | None = None) -> dict:
    """What it takes to get to `steps` updates, or to so many EFLOPs of the compute axis (6 N tokens); by default to
    config.total_steps."""
    if eflops is not None:
        steps = math.ceil(eflops / plan["eflops_per_step"])
    steps = config.total_steps if steps is None else steps
    kept = min(steps // config.checkpoint_every, steps // config.keep_every + LATEST_KEPT)
    found = {"steps": steps, "eflops": steps * plan["eflops_per_step"], "checkpoints": kept}
    found["storage_bytes"] = kept * plan["checkpoint_bytes"]
    if "step_seconds" in plan:
        hours = steps * plan["step_seconds"] / 3600
        found |= {"days": hours / 24, "chip_hours": hours * plan["chips"]}
    return found
