"""What every logical axis means on the mesh: the one place that lays out parameters, optimizer state, activations and
caches."""

import contextlib
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from colajax import axes
from colajax.errors import UserError

# Logical axis -> the mesh axes that divide it. A name that is not here is a mistake; None is a dimension kept whole.
RULES = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),  # of a parameter, the model width
    "heads": ("tensor",),  # attention heads, and the channels that they make up in a kernel
    "mlp": ("tensor",),  # inner width of feed-forward layers, outputs of modulations
    "vocab": ("tensor",),  # of logits
    # The width of the two vocabulary tables as they are kept. Their lengths (100,278 and one more) divide by nothing.
    "table": ("fsdp", "tensor"),
}
# Activations may be divided unevenly along these: the compiler pads, and the padding never meets a result.
PADDED = ("batch", "vocab")
REPLICATED_BYTES = 2**20


def _divided(name: str | None, size: int, mesh: Mesh, padded: bool) -> tuple[str, ...] | None:
    """The mesh axes that divide a dimension; those of the rule's that its size allows, the first first."""
    if name is None or size == 1:
        return None
    chosen, parts = [], 1
    for axis in RULES[name]:
        if mesh.shape[axis] > 1 and (padded or size % (parts * mesh.shape[axis]) == 0):
            chosen.append(axis)
            parts *= mesh.shape[axis]
    return tuple(chosen) or None


def sharding(mesh: Mesh, names: tuple, shape: tuple[int, ...], *, padded: bool = False) -> NamedSharding:
    """The sharding of an array whose last dimensions are called `names`; those before are kept whole."""
    names = (None,) * (len(shape) - len(names)) + tuple(names)
    dims = [_divided(name, size, mesh, padded and name in PADDED) for name, size in zip(names, shape, strict=True)]
    return NamedSharding(mesh, PartitionSpec(*dims))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh, names: dict, shapes: dict):
    """NamedShardings of a tree of parameters from the tree of their axes' names (tuples) and of their shapes.

    Raises UserError naming a parameter of more than 1 MB that every device would hold whole although the mesh has axes
    to divide it by.
    """

    def lay_out(path, leaf, leaf_names):
        found = sharding(mesh, leaf_names, leaf.shape)
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        dividing = mesh.shape["fsdp"] * mesh.shape["tensor"]
        if size > REPLICATED_BYTES and dividing > 1 and found.is_fully_replicated:
            name = "/".join(str(key.key) for key in path)
            raise UserError(
                f"parameter {name} {leaf.shape}, {size / 2**20:.0f} MB, would lie whole on every device: fsdp "
                f"{mesh.shape['fsdp']} and tensor {mesh.shape['tensor']} divide none of its axes {leaf_names}; choose "
                f"a config.mesh that does"
            )
        return found

    return jax.tree_util.tree_map_with_path(lay_out, shapes, names)


def with_shardings(shapes, shardings):
    """A tree of ShapeDtypeStructs that have these shardings."""
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)


def shardings_of(tree):
    """The shardings of a tree of arrays or of ShapeDtypeStructs."""
    return jax.tree.map(lambda x: x.sharding, tree)


@contextlib.contextmanager
def laid_out(mesh: Mesh):
    """While this is open, models lay their activations out over `mesh`. Open it where a function is traced."""

    def constrain(x, names):
        return jax.lax.with_sharding_constraint(x, sharding(mesh, names, x.shape, padded=True))

    with axes.layout_of_names(constrain):
        yield
