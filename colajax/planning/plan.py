"""The plan of a run: memory, time of a step, and what it takes to reach a target.

Time on a TPU is the compiler's schedule at the assumed clock, plus what the model of `interconnect` says communication
adds to it. Nothing has run: schedules are pessimistic where memory is the bound, know nothing of kernels written by
hand, of input, logging, evaluation, saving or failures, and take every chip to be as fast as the others. Where there is
no compiler, memory is that of `memory.activation_bytes`, and time follows from an assumed share of the peak. Of a stage
that trains its groups in turns (`objective.interval`) the first step is planned, which trains all of them (unless
`interval_joint` is 0).
"""

import importlib.metadata
import math
from collections.abc import Callable, Iterable

from jax.sharding import AbstractMesh, AxisType, Mesh

from colajax.errors import UserError
from colajax.parallel.batch import check_batch
from colajax.parallel.mesh import AXES, make_mesh, mesh_shape
from colajax.planning.compiled import compile_step
from colajax.planning.hlo import UnreadableProgram
from colajax.planning.interconnect import exposed_seconds, seconds
from colajax.planning.memory import activation_bytes, state_bytes, whole_bytes
from colajax.planning.schedule import Schedule
from colajax.planning.topology import Topology
from colajax.stages.base import steps_to
from colajax.train.checkpoint import LATEST
from colajax.train.metrics import peak_of
from colajax.train.optimizer import optimizer_of
from colajax.train.state import TrainState, abstract_state

# Matrix products of the compiled program over those that the stage counts: more where some are recomputed.
PRODUCTS = (0.8, 2.0)
UNTIMED = 0.01  # of the matrix products that may be without an estimate of their time
ASSUMED = 0.4  # of a GPU's peak, in matrix products of which full rematerialisation does a third more


def make_plan(config, make_stage: Callable, topology: Topology) -> dict:
    """The plan of a run, compiled where there is a compiler. make_stage(config, pad_id, eos_id) -> Stage. Where `fits`
    is False the compiler refused the step, and there is nothing about time. Raises UserError as training does."""
    if not topology.devices:
        return analytic_plan(config, make_stage, topology)
    mesh = make_mesh(config.mesh, topology.devices)
    stage, optimizer, state = _set_up(config, make_stage, mesh)
    try:
        step = compile_step(config, stage, optimizer, state)
    except UnreadableProgram as error:
        raise _untrusted(topology, f"its program has {error}, which this version of colajax cannot read") from error
    plan = _facts(config, stage, state, topology) | {"how": "compiled", "compile_seconds": step.seconds}
    plan |= {"memory": step.memory, "fits": step.schedule is not None}
    if not plan["fits"]:
        return plan
    plan |= _time_on_tpu(plan, step.schedule, mesh, topology)
    check_plan(plan, step.schedule, topology)
    return plan


def check_plan(plan: dict, schedule: Schedule, topology: Topology) -> None:
    """Raises UserError for a plan that cannot be right: one is better than a wrong number of days."""
    ratio = schedule.flops * topology.count / plan["useful_flops"]
    least, most = PRODUCTS
    if not least <= ratio <= most:
        raise _untrusted(
            topology, f"its program has {ratio:.2f} times the matrix products of the model; expected {least} to {most}"
        )
    if schedule.untimed_flops > UNTIMED * schedule.flops:
        share = schedule.untimed_flops / schedule.flops
        raise _untrusted(topology, f"it gives no time for {share:.0%} of the matrix products")
    if not 0 < plan["mfu"] < 1:
        raise _untrusted(topology, f"by its schedule the devices would reach {plan['mfu']:.0%} of their peak")


def _untrusted(topology: Topology, reason: str) -> UserError:
    version = importlib.metadata.version("libtpu")
    return UserError(
        f"{topology.name}: no plan, because what the compiler (libtpu {version}) says cannot be trusted: {reason}; "
        "use the libtpu of launch/constraints"
    )


def analytic_plan(config, make_stage: Callable, topology: Topology) -> dict:
    """The plan without a compiler; no time for a device whose peak is not in a table."""
    sizes = mesh_shape(config.mesh, topology.count)
    stage, _, state = _set_up(config, make_stage, AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES)))
    plan = _facts(config, stage, state, topology) | {"how": "analytic"}
    memory = state_bytes(state)
    memory["activations"] = activation_bytes(config, make_stage, state, plan["mesh"])
    memory["peak"] = sum(memory.values())
    plan |= {"memory": memory, "fits": topology.hbm is None or memory["peak"] <= topology.hbm}
    if plan["peak_flops"]:
        mfu = ASSUMED * (3 / 4 if config.remat == "full" else 1)
        plan |= {"mfu": mfu, "step_seconds": plan["useful_flops"] / (plan["peak_flops"] * mfu)}
        plan["tokens_per_second"] = plan["tokens"] / plan["step_seconds"]
    return plan


def _set_up(config, make_stage: Callable, mesh):
    """(stage, optimizer, abstract state) of a run on a mesh, with devices or without."""
    check_batch(mesh, config.batch_size, config.accumulation_steps)
    stage = make_stage(config, 0, 0)
    optimizer = optimizer_of(config, stage)
    return stage, optimizer, abstract_state(stage, optimizer, mesh)


def _facts(config, stage, state: TrainState, topology: Topology) -> dict:
    peak = peak_of(topology.device_kind)
    tokens = config.batch_size * config.sequence_length
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "devices": topology.count,
        "mesh": dict(state.step.sharding.mesh.shape),
        "batch_size": config.batch_size,
        "sequence_length": config.sequence_length,
        "accumulation_steps": config.accumulation_steps,
        "remat": config.remat,
        "available": topology.hbm,
        "tokens": tokens,
        "useful_flops": stage.flops(config.batch_size, stage.trainable(0)),
        "peak_flops": peak and peak * topology.count,
        "eflops_per_step": stage.eflops_per_step(config.batch_size),
        "checkpoint_bytes": whole_bytes(state),
    }


def _time_on_tpu(plan: dict, schedule: Schedule, mesh: Mesh, topology: Topology) -> dict:
    tpu, devices = topology.tpu, list(mesh.devices.flat)
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
        "cycles_per_device": cycles,
        "recomputed_cycles": schedule.recomputed,
        "untimed": dict(schedule.untimed),
        "communication": communication,
        "communication_bytes_per_device": sum(row["bytes"] for row in communication),
        "exposed_seconds": exposed,
        "step_seconds": step_seconds,
        "mfu": plan["useful_flops"] / (plan["peak_flops"] * step_seconds),
        "tokens_per_second": plan["tokens"] / step_seconds,
    }


def target(plan: dict, config, *, steps: int | None = None, eflops: float | None = None) -> dict:
    """What it takes to get to `steps` updates, or to so many EFLOPs of the compute axis (6 N tokens); by default to
    config.total_steps."""
    if eflops is not None:
        steps = steps_to(eflops, plan["eflops_per_step"])
    steps = config.total_steps if steps is None else steps
    budgets = [steps_to(budget, plan["eflops_per_step"]) for budget in config.budgets]
    kept = count_kept(steps, config.checkpoint_every, config.keep_every, budgets)
    found = {"steps": steps, "eflops": steps * plan["eflops_per_step"], "checkpoints": kept}
    found["storage_bytes"] = kept * plan["checkpoint_bytes"]
    if "step_seconds" in plan:
        hours = steps * plan["step_seconds"] / 3600
        found |= {"days": hours / 24, "chip_hours": hours * plan["chips"]}
    return found


def count_kept(steps: int, checkpoint_every: int, keep_every: int, budgets: Iterable[int] = ()) -> int:
    """How many checkpoints a run holds that has come to `steps`, its last: see `train.checkpoint.Checkpoints`."""
    both = math.lcm(checkpoint_every, keep_every)
    before = (steps - 1) // checkpoint_every  # saved before the last
    at_budgets = {step for step in budgets if step <= steps}
    saved = {steps, *at_budgets, *(checkpoint_every * (before - i) for i in range(min(LATEST - 1, before)))}
    kept = at_budgets.union(sorted(saved)[-LATEST:])
    return steps // both + sum(step % both > 0 for step in kept)
