"""How long collectives take that the compiler gives no time for.

The model. A device sends what `Collective.sent` counts (a ring's traffic) over all links along which its group extends:
one link each way for every dimension of the torus in which the group's chips differ, both ways where the ends of that
dimension are connected and the group fills it, half of that otherwise. Between slices every byte goes over the network
once. Latency, contention between collectives under way at the same time, and routing of permutations over more than one
link are not counted. What is hidden: a collective takes as much longer than the compute scheduled between its start and
its end as the model says; a synchronous one takes its whole time.
"""

from collections.abc import Sequence

from colajax.planning.schedule import NETWORK, Collective
from colajax.planning.topology import TPU


def seconds(collective: Collective, devices: Sequence, tpu: TPU) -> float:
    """How long one execution takes; devices: those of the mesh, in its flat order."""
    if collective.axes == (NETWORK,):
        return collective.sent * tpu.devices_per_chip / tpu.network
    group = [devices[i] for i in collective.groups[0]]
    if collective.kind == "collective-permute":
        return collective.sent * tpu.devices_per_chip / tpu.link
    # Devices of one chip that are not of one group share its links.
    chips = len({tuple(device.coords) for device in group})
    sharing = tpu.devices_per_chip * chips / len(group)
    return sharing * collective.sent / (tpu.link * max(1, _ways(group, devices, tpu)))


def _ways(group: Sequence, devices: Sequence, tpu: TPU) -> int:
    """Links of a chip that lead to others of its group."""
    ways = 0
    for dimension in range(len(devices[0].coords)):
        extent = len({device.coords[dimension] for device in devices})
        used = len({device.coords[dimension] for device in group})
        closed = used == extent and extent >= tpu.ring
        ways += 0 if used == 1 else 2 if closed else 1
    return ways


def exposed_seconds(collective: Collective, devices: Sequence, tpu: TPU) -> float:
    """What one execution adds to the step."""
    hidden = collective.hidden_cycles / tpu.clock if collective.asynchronous else 0.0
    return max(0.0, seconds(collective, devices, tpu) - hidden)
