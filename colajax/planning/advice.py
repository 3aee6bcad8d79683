"""What would make a step fit that does not."""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from colajax.errors import UserError
from colajax.models.layers import REMAT_POLICIES
from colajax.parallel.mesh import AXES, mesh_shape
from colajax.planning.plan import analytic_plan
from colajax.planning.topology import Topology
from colajax.train.config import changed

MARGIN = 0.9  # of the memory, for a step that is not compiled


def refusal(plan: dict, config, make_stage: Callable, topology: Topology) -> UserError:
    """The error for a plan that does not fit: how much it needs, how much there is, and what would fit.

    What would fit is taken from the analytic model, with the activations scaled by what the plan itself needs over what
    the model says of it: nothing more is compiled."""
    needs, has = plan["memory"]["peak"], topology.hbm
    scale = plan["memory"]["activations"] / analytic_plan(config, make_stage, topology)["memory"]["activations"]
    said = f"{topology.name}: a device would need {needs / 1e9:.1f} GB and has {has / 1e9:.1f}"
    for words, candidate in _remedies(config, topology):
        try:
            memory = analytic_plan(candidate, make_stage, topology)["memory"]
        except UserError:
            continue
        expected = memory["peak"] + (scale - 1) * memory["activations"]
        if expected < MARGIN * has:
            return UserError(
                f"{said}; by the analytic model (not compiled) it would fit, with {expected / 1e9:.1f} GB, with {words}"
            )
    return UserError(f"{said}; nothing tried fits either (remat, accumulation, fsdp): it needs more devices")


def _remedies(config, topology: Topology) -> Iterator[tuple[str, ConfigDict]]:
    """From the cheapest: recompute, go through the batch in parts, divide the state further."""
    policies = list(REMAT_POLICIES)[list(REMAT_POLICIES).index(config.remat) :]
    parts = [config.accumulation_steps * 2**i for i in range(8)]
    _, now, tensor = mesh_shape(config.mesh, topology.count)
    meshes = [{}]
    meshes += [{"mesh": {"data": -1, "fsdp": fsdp, "tensor": tensor}} for fsdp in _above(now, topology.count)]
    for mesh in meshes:
        for part in parts:
            for remat in policies:
                candidate = changed(config, remat=remat, accumulation_steps=part, **mesh)
                if candidate != config:
                    yield _words(config, candidate), candidate


def _above(fsdp: int, count: int) -> list[int]:
    return [size for size in (2**i for i in range(14)) if size > fsdp and count % size == 0]


def _words(config, candidate) -> str:
    flags = [
        f"--config.{key}={candidate[key]}" for key in ("remat", "accumulation_steps") if candidate[key] != config[key]
    ]
    flags += [
        f"--config.mesh.{axis}={candidate.mesh[axis]}" for axis in AXES if candidate.mesh[axis] != config.mesh[axis]
    ]
    return " ".join(flags)
