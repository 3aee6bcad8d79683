"""Small programs compiled for real topologies, whose loops, products and collectives are known; topologies; the model
of the interconnect."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from colajax.errors import UserError
from colajax.parallel.mesh import AXES, make_mesh
from colajax.planning.interconnect import exposed_seconds, seconds
from colajax.planning.schedule import Collective, read_schedule
from colajax.planning.topology import TPUS, find_topology

pytestmark = pytest.mark.optimised

MESH = {"data": 2, "fsdp": 2, "tensor": 1}
LAYERS, WIDTH, ROWS = 5, 256, 128  # of a device


def schedule_of(function, *arguments, mesh):
    (program,) = function.lower(*arguments).compile().runtime_executable().hlo_modules()
    return read_schedule(program.as_serialized_hlo_module_proto(), mesh)


@pytest.fixture(scope="module")
def compiled():
    """compiled(topology, layers): the schedule of a program whose collectives are written out."""

    @functools.cache
    def compile_for(name: str, layers: int):
        topology = find_topology(name)
        mesh = Mesh(np.array(topology.devices).reshape(2, 2, 1), AXES, axis_types=(AxisType.Auto,) * 3)

        def layer(x, w):
            with jax.named_scope("mlp"):
                x = jnp.tanh(x @ lax.all_gather(w, "fsdp", axis=0, tiled=True))
            return lax.fori_loop(0, 3, lambda i, x: lax.ppermute(x, "data", [(0, 1), (1, 0)]) * 0.5, x), None

        def program(x, weights):
            x, _ = lax.scan(layer, x, weights)
            return lax.psum(jnp.cos(x), ("data", "fsdp"))

        spread = jax.shard_map(
            program, mesh=mesh, in_specs=(P(("data", "fsdp")), P(None, "fsdp")), out_specs=P(), check_vma=False
        )
        x, weights = (
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
            for shape, spec in (((4 * ROWS, WIDTH), P(("data", "fsdp"))), ((layers, WIDTH, WIDTH), P(None, "fsdp")))
        )
        return schedule_of(jax.jit(spread), x, weights, mesh=MESH)

    return compile_for


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
def test_a_small_program_on_a_real_topology(compiled, topology):
    schedule = compiled(topology, LAYERS)
    found = {c.kind: c for c in schedule.collectives}
    assert len(found) == len(schedule.collectives) == 3
    gather, permute, reduce = found["all-gather"], found["collective-permute"], found["all-reduce"]
    assert (gather.axes, gather.times, gather.sent) == (("fsdp",), LAYERS, WIDTH // 2 * WIDTH * 2)
    assert (permute.axes, permute.times) == (("data",), 3 * LAYERS)
    assert permute.sent in (ROWS * WIDTH * 2, ROWS * WIDTH * 4)  # the compiler may keep it in float32
    assert (reduce.axes, reduce.times) == (("data", "fsdp"), 1)
    assert reduce.sent in (1.5 * ROWS * WIDTH * 2, 1.5 * ROWS * WIDTH * 4)
    assert schedule.cycles["MLP"] > 0
    assert (schedule.flops, schedule.untimed_flops) == (LAYERS * 2 * ROWS * WIDTH * WIDTH, 0)


def test_matrix_products_of_gradients_and_batches():
    """Whatever the compiler makes of them: products, batches of products, and their gradients, in a loop."""
    batch, rows, width, rounds = 3, 128, 256, 4

    def loss(weights, x):
        def layer(x, _):
            y = jnp.einsum("bij,bjk->bik", x, weights)
            scores = jnp.tanh(jnp.einsum("bij,bkj->bik", y, y))
            return jnp.einsum("bik,bkj->bij", scores, y), None

        return lax.scan(layer, x, None, length=rounds)[0].sum()

    device = SingleDeviceSharding(find_topology("v5e:2x2").devices[0])
    weights = jax.ShapeDtypeStruct((batch, width, width), jnp.bfloat16, sharding=device)
    x = jax.ShapeDtypeStruct((batch, rows, width), jnp.bfloat16, sharding=device)
    schedule = schedule_of(jax.jit(jax.grad(loss)), weights, x, mesh={"data": 1})
    # Forward and twice as much backward, less the gradient of the input that nobody asked for.
    product, scores = 2 * batch * rows * width * width, 2 * batch * rows * rows * width
    assert schedule.flops == pytest.approx(3 * rounds * (product + 2 * scores), rel=0.15)
    assert schedule.untimed_flops == 0


def test_cycles_are_linear_in_the_number_of_layers(compiled):
    five, ten, twenty = (sum(compiled("v5e:2x2", layers).cycles.values()) for layers in (5, 10, 20))
    assert twenty - ten == pytest.approx(2 * (ten - five), rel=0.02)
    assert ten > 1.5 * five


@pytest.mark.parametrize(("name", "count", "gib"), [("v5e:2x4", 8, 15.75), ("tpu7x:2x2x1", 8, 94.74)])
def test_topologies(name, count, gib):
    topology = find_topology(name)
    assert (topology.count, len(topology.devices)) == (count, count)
    assert topology.hbm / 2**30 == pytest.approx(gib, rel=1e-3)  # what the compiler names when it refuses a program
    assert topology.chips == count // TPUS[name.partition(":")[0]].devices_per_chip


def test_slices():
    """A sum within each slice, and over the network between the two."""
    topology = find_topology("v5e:2x2", 2)
    assert [device.slice_index for device in topology.devices] == [0] * 4 + [1] * 4
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1}, topology.devices)
    sums = jax.shard_map(
        lambda x: jnp.cos(lax.psum(jnp.sin(lax.psum(x, "fsdp")), "data")),
        mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(), check_vma=False,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    found = {c.axes: c for c in schedule_of(jax.jit(sums), x, mesh=dict(mesh.shape)).collectives}
    between, within = found[("slices",)], found[("fsdp",)]
    assert (between.kind, between.times, between.asynchronous) == ("all-reduce", 1, True)
    assert within.times == 1
    assert 0 < between.sent <= ROWS * WIDTH * 4
    assert found.keys() == {("slices",), ("fsdp",)}


@pytest.mark.parametrize("name", ["v5p:3x3x3", "v5e:16x32", "v5e", "v9:2x2", "h100", "h100:0", "cpu:x", ""])
def test_unknown_topologies_are_answered_with_names_that_work(name):
    with pytest.raises(UserError, match="expected") as error:
        find_topology(name)
    assert "\n" not in str(error.value)


# ---- the model of the interconnect ----------------------------------------------------------------------------------


def test_time_of_collectives():
    """v5e, 50 GB/s a link and direction: a line of 4 uses one link, a closed ring of 16 both, two dimensions add up."""
    tpu, small, large = TPUS["v5e"], find_topology("v5e:4x4").devices, find_topology("v5e:16x16").devices

    def at(devices, *places):
        return [i for i, device in enumerate(devices) if tuple(device.coords[:2]) in places]

    def of(group, kind="all-gather", hidden=0):
        return Collective(kind, (), [group], 1e9, 1, True, hidden)

    row = of(at(small, *[(x, 0) for x in range(4)]))
    assert seconds(row, small, tpu) == pytest.approx(1e9 / 50e9)
    assert seconds(of(list(range(16))), small, tpu) == pytest.approx(1e9 / 100e9)
    assert seconds(of(at(large, *[(x, 3) for x in range(16)])), large, tpu) == pytest.approx(1e9 / 100e9)
    assert seconds(of(list(range(256))), large, tpu) == pytest.approx(1e9 / 200e9)
    assert seconds(of(list(range(256)), "collective-permute"), large, tpu) == pytest.approx(1e9 / 50e9)
    assert exposed_seconds(row._replace(hidden_cycles=15_000_000), small, tpu) == pytest.approx(0.01)
    assert exposed_seconds(row._replace(hidden_cycles=15_000_000, asynchronous=False), small, tpu) == 0.02
    assert exposed_seconds(row._replace(hidden_cycles=10**9), small, tpu) == 0
    assert seconds(row._replace(axes=("slices",), groups=[]), small, tpu) == pytest.approx(1e9 / (25e9 / 8))


def test_devices_of_one_chip_share_its_links():
    """tpu7x, two devices a chip: a ring through all of them leaves a chip once, two rings through one each do twice."""
    tpu, devices = TPUS["tpu7x"], find_topology("tpu7x:2x2x1").devices
    ring = Collective("all-gather", (), [list(range(8))], 1e9, 1, True, 0)
    apart = ring._replace(groups=[[i for i, device in enumerate(devices) if device.core_on_chip == 0]])
    assert len(apart.groups[0]) == 4
    assert seconds(ring, devices, tpu) == pytest.approx(1e9 / (2 * tpu.link))
    assert seconds(apart, devices, tpu) == pytest.approx(2e9 / (2 * tpu.link))
