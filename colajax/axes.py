"""Logical axes: the names that models give to the dimensions of their arrays.

What a name means on a mesh is said in one place, colajax/parallel/rules.py. Without a layout names mean nothing, and a
model runs where its arguments are.

Why `by_sample` stands after every product. XLA's partitioner has a fault: of `y + constrain(y @ q, batch, None,
tensor) @ o`, with weights over fsdp and tensor on a mesh of 2 x 2 x 2, samples 1 and 2 come out in each other's place,
at 128 x 256 and 512 x 2048 on the CPU, with jax 0.10.2 and 0.12.0, Shardy and GSPMD. (In what libtpu makes of these
sizes for v5p the exchange is not to be seen; none of it has run.) Explicit axes (`AxisType.Explicit`) do not take the
fault away. They refuse those lines as they stand, for each product then has to name the layout of its result; but with
every layout named as (data, fsdp), None, tensor, and checked when traced, the same samples are exchanged and gradients
are off by .4 to .9; with (fsdp, data) first, the gradient of one weight is off by .35 where the values are right. What
is wrong is how a layout is computed, not which one is chosen. It is met where a product is divided over all three
axes: so results of products are laid out by sample and whole otherwise, or over tensor where they are heads, inner
widths and words.
Every run on several devices is checked before it begins (colajax/train/self_check.py).
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
    """x, laid out by its first axis, the samples, and whole otherwise. Models say it after every product: see above."""
    return constrain(x, "batch", *[None] * (x.ndim - 1))


@contextlib.contextmanager
def layout_of_names(layout: Callable[[jax.Array, tuple], jax.Array]) -> Iterator[None]:
    """While this is open, `constrain` is `layout(x, names)`. Open it where a function is traced."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)
