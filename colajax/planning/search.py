"""Compiles alternatives of a configuration, and ranks them by their speed."""

import sys
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from colajax.errors import UserError
from colajax.models.layers import REMAT_POLICIES
from colajax.parallel.mesh import AXES, mesh_shape
from colajax.planning.plan import analytic_plan, make_plan
from colajax.planning.topology import Topology
from colajax.train.config import changed

# Of the activations that the analytic model gives: where not even these fit, nothing is compiled.
_LEAST = 0.5


def search(config, make_stage: Callable, topology: Topology, report: Callable[[dict], None]) -> list[dict]:
    """The plans of alternatives that fit, most tokens/s first; `report` is given each as soon as it is there.

    From the configuration on, one thing after the other is varied, the best kept: what is recomputed, the fsdp axis,
    the tensor axis, how many parts a batch is divided into (with less recomputed where more), and last the batch, which
    makes it another run. What cannot fit by the analytic model is left out. Ctrl-C ends the search with what is
    done. Raises UserError where nothing fits."""
    plans: list[tuple[ConfigDict, dict]] = []
    best = _resolved(config, topology.count)
    try:
        for vary in (_remat, _fsdp, _tensor, _parts, _batch):
            for candidate in vary(best):
                if _may_fit(candidate, make_stage, topology):
                    candidate = _resolved(candidate, topology.count)
                    if candidate not in [tried for tried, _ in plans]:
                        plans.append((candidate, make_plan(candidate, make_stage, topology)))
                        report(plans[-1][1])
            best = max(((c, plan) for c, plan in plans if plan["fits"]), key=_speed, default=(best, None))[0]
    except KeyboardInterrupt:
        print(f"interrupted after {len(plans)} alternatives", file=sys.stderr)
    fitting = [(candidate, plan) for candidate, plan in plans if plan["fits"]]
    if not fitting:
        raise UserError(f"{topology.name}: no alternative fits of {len(plans)} tried; it needs more devices")
    return [plan for _, plan in sorted(fitting, key=_speed, reverse=True)]


def _speed(found: tuple[ConfigDict, dict]) -> float:
    return found[1].get("tokens_per_second", 0.0)


def _resolved(config, count: int) -> ConfigDict:
    """The configuration with the size of every axis of the mesh in place of -1."""
    return changed(config, mesh=dict(zip(AXES, mesh_shape(config.mesh, count), strict=True)))


def _may_fit(config, make_stage: Callable, topology: Topology) -> bool:
    """Whether to compile it: it divides over the devices, and the analytic model leaves hope."""
    try:
        plan = analytic_plan(config, make_stage, topology)
    except UserError:
        return False
    memory = plan["memory"]
    least = memory["peak"] - (1 - _LEAST / plan["mesh"]["tensor"]) * memory["activations"]
    return topology.hbm is None or least <= topology.hbm


def _remat(config) -> Iterator[ConfigDict]:
    yield config
    for remat in REMAT_POLICIES:
        yield changed(config, remat=remat)


def _fsdp(config) -> Iterator[ConfigDict]:
    for fsdp in (max(1, config.mesh.fsdp // 2), config.mesh.fsdp * 2, config.mesh.fsdp * 4):
        yield changed(config, mesh={"data": -1, "fsdp": fsdp})


def _tensor(config) -> Iterator[ConfigDict]:
    yield changed(config, mesh={"data": -1, "tensor": 2 * config.mesh.tensor})


def _parts(config) -> Iterator[ConfigDict]:
    yield changed(config, accumulation_steps=max(1, config.accumulation_steps // 2))
    policies = list(REMAT_POLICIES)
    for remat in policies[: policies.index(config.remat) + 1]:
        yield changed(config, remat=remat, accumulation_steps=2 * config.accumulation_steps)


def _batch(config) -> Iterator[ConfigDict]:
    for batch_size in (max(1, config.batch_size // 2), config.batch_size * 2):
        yield changed(config, batch_size=batch_size)


def line(plan: dict) -> str:
    """One alternative, as a line of the ranking."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    memory = f"{plan['memory']['peak'] / 1e9:.1f} GB"
    batch = f"batch {plan['batch_size']} in {plan['accumulation_steps']}"
    said = f"{mesh:<28} {batch:<16} remat {plan['remat']:<5}{memory:>10}"
    if not plan["fits"]:
        return said + "  does not fit"
    if "mfu" not in plan:
        return said
    return said + f"{plan['tokens_per_second']:>14,.0f} tokens/s  MFU {plan['mfu']:.1%}"
