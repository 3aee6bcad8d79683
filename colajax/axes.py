"""Logical axes: the names that models give to the dimensions of their arrays.

What a name means on a mesh is said in one place, colajax/parallel/rules.py. Without a layout names mean nothing, and a
model runs where its arguments are.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

_layout: contextvars.ContextVar[Callable | None] = contextvars.ContextVar("layout", default=None)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """x, laid out over the devices as the names of its dimensions say; None is a dimension that stays whole."""
    layout = _layout.get()
    return x if layout is None else layout(x, names)


def by_sample(x: jax.Array) -> jax.Array:
    """x, laid out by its first axis, the samples, and whole otherwise. Models say it after every product: left to
    choose where a product is divided over three axes, the partitioner has been seen to swap samples (jax 0.10.2;
    tests/mesh_test.py)."""
    return constrain(x, "batch", *[None] * (x.ndim - 1))


@contextlib.contextmanager
def laid_out(layout: Callable[[jax.Array, tuple], jax.Array]) -> Iterator[None]:
    """While this is open, `constrain` is `layout(x, names)`. To be opened where a function is traced."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)
