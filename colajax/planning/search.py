"""Compiles alternatives of a configuration, and ranks them by the time of a step."""

import math
import sys
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from colajax.errors import UserError
from colajax.models.layers import REMAT_POLICIES
from colajax.planning.memory import changed
from colajax.planning.plan import analytic_plan, compiled_plan
from colajax.planning.topology import Topology

# Of the activations that the analytic model gives: where not even these fit, nothing is compiled.
LEAST = 0.5


def search(config, make_stage: Callable, topology: Topology, report: Callable[[dict], None]) -> list[dict]:
    """The plans of alternatives that fit, the fastest first; `report` is given each plan as soon as it is there.

    From the configuration on, one thing after the other is varied, the best kept: what is recomputed, the fsdp axis,
    the tensor axis, and in how many parts the batch is gone through, with less recomputed. What cannot fit by the
    analytic model is left out. Ctrl-C ends the search with what is done. Raises UserError where nothing fits."""
    plans: list[tuple[ConfigDict, dict]] = []
    try:
        for vary in (_remat, _fsdp, _tensor, _parts):
            for candidate in list(vary(_best(plans, config))):
                if candidate not in [tried for tried, _ in plans] and may_fit(candidate, make_stage, topology):
                    make = compiled_plan if topology.devices else analytic_plan
                    plans.append((candidate, make(candidate, make_stage, topology)))
                    report(plans[-1][1])
    except KeyboardInterrupt:
        print(f"interrupted after {len(plans)} alternatives", file=sys.stderr)
    fitting = [plan for _, plan in plans if plan["fits"]]
    if not fitting:
        raise UserError(f"{topology.name}: no alternative fits of {len(plans)} tried; it needs more devices")
    return sorted(fitting, key=_seconds)


def _seconds(plan: dict) -> float:
    return plan.get("step_seconds", math.inf)


def _best(plans: list[tuple[ConfigDict, dict]], otherwise: ConfigDict) -> ConfigDict:
    fitting = [(config, plan) for config, plan in plans if plan["fits"]]
    return min(fitting, key=lambda pair: _seconds(pair[1]))[0] if fitting else otherwise


def may_fit(config, make_stage: Callable, topology: Topology) -> bool:
    """Whether to compile it: it divides over the devices, and the analytic model leaves hope."""
    try:
        memory = analytic_plan(config, make_stage, topology)["memory"]
    except UserError:
        return False
    least = memory["peak"] - (1 - LEAST / config.mesh.tensor) * memory["activations"]
    return topology.hbm is None or least <= topology.hbm


def _remat(config) -> Iterator[ConfigDict]:
    yield config
    for remat in REMAT_POLICIES:
        yield changed(config, remat=remat)


def _fsdp(config) -> Iterator[ConfigDict]:
    for fsdp in (config.mesh.fsdp // 2, config.mesh.fsdp * 2, config.mesh.fsdp * 4):
        if fsdp:
            yield changed(config, mesh={"data": -1, "fsdp": fsdp})


def _tensor(config) -> Iterator[ConfigDict]:
    yield changed(config, mesh={"data": -1, "tensor": 2 * config.mesh.tensor})


def _parts(config) -> Iterator[ConfigDict]:
    policies = list(REMAT_POLICIES)
    for remat in policies[: policies.index(config.remat) + 1]:
        yield changed(config, remat=remat, accumulation_steps=2 * config.accumulation_steps)


def line(plan: dict) -> str:
    """One alternative."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    memory = f"{plan['memory']['peak'] / 1e9:.1f} GB"
    said = f"{mesh:<28} {plan['accumulation_steps']:>2} parts  remat {plan['remat']:<5}{memory:>10}"
    if not plan["fits"]:
        return said + "  does not fit"
    return said + (f"{1e3 * plan['step_seconds']:8.0f} ms  MFU {plan['mfu']:.0%}" if "step_seconds" in plan else "")
