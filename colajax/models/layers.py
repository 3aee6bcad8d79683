"""What the modules share: initialisers, linear layers and norms by precision, rotary positions, stacked layers.

Shape letters, here and in the rest of the models: B samples, C copies, L latents (or positions), N blocks, S positions
of a block, J cached positions, H heads, K head channels, M model width, D latent channels, T tokens, V vocabulary.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

# Every initialiser of the project. Kernels keep the variance of their input (at the released widths that is a
# standard deviation near the released 0.02); a modulation starts as the identity with its residual branch open.
INIT = {
    "kernel": nnx.initializers.lecun_normal(),
    "embedding": nnx.initializers.normal(0.02),
    "bias": nnx.initializers.zeros_init(),
    "modulation": nnx.initializers.zeros_init(),
    "gate_bias": nnx.initializers.ones_init(),
    "velocity": nnx.initializers.zeros_init(),
}

# A scan pays for slicing its parameters and for stacking what the backward pass keeps (a quarter of a CPU step), so
# without rematerialisation stacks up to this height are compiled layer by layer. All others are compiled once for all
# layers; on TPUs that also keeps the layers apart (a paper-size VAE unrolled: 1.7 x the cycles, 3 x the memory).
UNROLLED_LAYERS = 4

# What the backward pass recomputes, by config name.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names("product"),  # a Linear's; a policy does not see into it
    "full": jax.checkpoint_policies.nothing_saveable,
}


def precision_of(dtype) -> jax.lax.Precision:
    """float32 compute is the parity mode: no accelerator may round its operands."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x, kernel, result):
    """x (..., I) @ kernel (I, O) in the dtype `result`, with the kernel rounded to x's dtype.

    Gradients: of x in its dtype; of the kernel, a sum over all positions, in the kernel's dtype. So a float32 kernel's
    gradient is never rounded to bfloat16, neither here nor when devices add up what each has of it.
    """
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(
        x, kernel.astype(x.dtype), dims, precision=precision_of(x.dtype), preferred_element_type=result
    )


def _product_forward(x, kernel, result):
    return product(x, kernel, result), (x, kernel)


def _product_backward(_, operands, gradient):
    x, kernel = operands
    gradient, precision = gradient.astype(x.dtype), precision_of(x.dtype)
    positions = tuple(range(x.ndim - 1))
    of_x = jax.lax.dot_general(
        gradient, kernel.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())), precision=precision
    )
    of_kernel = jax.lax.dot_general(
        x, gradient, ((positions, positions), ((), ())), precision=precision, preferred_element_type=kernel.dtype
    )
    return of_x, of_kernel


product.defvjp(_product_forward, _product_backward)


class Linear(nnx.Module):
    """x @ kernel + bias. float32 parameters, operands of the product in `dtype`, the result in `result` (default
    `dtype`). Heads give float32: what follows them (softmax, norm, loss) is float32.

    What every position shares meets the positions in float32, here and in the whole model: its gradient is a sum over
    them, and a sum in bfloat16 stands still at 256 times its terms.
    """

    def __init__(
        self, inputs: int, outputs: int, axes: tuple, *, dtype, rngs, bias=True, kernel="kernel", bias_init="bias",
        result=None,
    ):  # fmt: skip
        """kernel, bias_init: rows of INIT; axes: the names of the kernel's two dimensions."""
        self.kernel = nnx.Param(INIT[kernel](rngs.params(), (inputs, outputs), jnp.float32), axes=axes)
        self.bias = nnx.data(None)
        if bias:
            self.bias = nnx.Param(INIT[bias_init](rngs.params(), (outputs,), jnp.float32))
        self.dtype, self.result = dtype, result or dtype

    def __call__(self, x):
        y = checkpoint_name(product(x.astype(self.dtype), self.kernel[...], self.result), "product")
        return y if self.bias is None else (y.astype(jnp.float32) + self.bias[...]).astype(self.result)


def layer_norm(dim: int, *, eps: float, dtype, rngs, affine=True) -> nnx.LayerNorm:
    """Statistics, scale and shift in float32; the result in `dtype`."""
    return nnx.LayerNorm(
        dim, epsilon=eps, use_bias=affine, use_scale=affine, dtype=dtype, param_dtype=jnp.float32,
        promote_dtype=lambda arrays, dtype: arrays, use_fast_variance=False, rngs=rngs,
    )  # fmt: skip


def rms_norm(dim: int, *, eps: float, dtype, rngs) -> nnx.RMSNorm:
    """x / sqrt(mean(x^2) + eps) * scale, in float32; the result in `dtype`."""
    return nnx.RMSNorm(
        dim, epsilon=eps, dtype=dtype, param_dtype=jnp.float32, promote_dtype=lambda arrays, dtype: arrays,
        use_fast_variance=True, rngs=rngs,
    )  # fmt: skip


def rope_frequencies(dim: int, theta: float) -> np.ndarray:
    """theta^(-2i/dim) for i = 0 .. dim/2 - 1, (dim/2,) float32, with PyTorch's bytes at the usual sizes."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    table = np.float32(1) / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    if (dim, theta) == (96, 10000):
        # The released prior's table. PyTorch's vectorised power (AVX2 and AVX-512) is not correctly rounded here.
        table[20] = np.nextafter(table[20], np.float32(1))
    return table


def rotate_half(x, positions, frequencies, dtype=jnp.float32):
    """RoPE on the whole head, "half" layout: pair i is (i, i + K/2). Angles in float32, the rotation in `dtype`.

    x: (..., L, H, K); positions: (..., L), broadcast against x; frequencies: (K/2,). Returns x's shape and dtype.
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[..., None, :].astype(dtype), jnp.sin(angles)[..., None, :].astype(dtype)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rotate_interleaved(x, positions, frequencies):
    """RoPE in float32 on the first 2 * len(frequencies) channels, pair i is (2i, 2i + 1); the rest is untouched.

    x: (..., L, H, K); positions: (..., L), broadcast against x. Returns x's shape and dtype.
    """
    width = 2 * len(frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    pairs = x[..., :width].astype(jnp.float32).reshape(*x.shape[:-1], width // 2, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(*x.shape[:-1], width)
    return jnp.concatenate([turned.astype(x.dtype), x[..., width:]], axis=-1)


def stack_layers(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """One module whose parameters have a leading layer axis of `count`, each layer drawn with its own key."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make_stacked(rngs):
        return make(rngs)

    return make_stacked(rngs)


def scan_layers(stacked: nnx.Module, apply: Callable, x, xs=None, *, remat: str = "none"):
    """Runs x through the stacked layers.

    apply(layer, x, xs of that layer) -> (x, ys of that layer). `remat` names a row of REMAT_POLICIES.
    Returns the last x and the ys stacked along a leading layer axis.
    """
    graphdef, params = nnx.split(stacked)

    def body(x, layer):
        layer_params, layer_xs = layer
        return apply(nnx.merge(graphdef, layer_params), x, layer_xs)

    unrolled = remat == "none" and jax.tree.leaves(params)[0].shape[0] <= UNROLLED_LAYERS
    if remat != "none":
        # In a loop the backward pass is apart from the forward pass: the compiler cannot merge the two again.
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(body, x, (params, xs), unroll=unrolled)


@functools.cache  # tracing takes a good part of a second
def _traced(make: Callable[..., nnx.Module], config, **options) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure, and parameters as ShapeDtypeStructs."""
    return nnx.split(nnx.eval_shape(lambda: make(config, **options, rngs=nnx.Rngs(0))))


class Functional:
    """A module as two plain functions: `init(key)` draws a plain dict of float32 arrays, `bind(params)` is the module
    over such a dict. The only way in which the rest of the project meets Flax.

    The module is make(config, **options, rngs=...).
    """

    def __init__(self, make: Callable[..., nnx.Module], config, **options):
        self._make = functools.partial(make, config, **options)
        self._graphdef, self._abstract = _traced(make, config, **options)

    def init(self, key: jax.Array) -> dict:
        return nnx.to_pure_dict(nnx.state(self._make(rngs=nnx.Rngs(key))))

    def shapes(self) -> dict:
        """The dict of `init`, of ShapeDtypeStructs, nothing allocated."""
        return nnx.to_pure_dict(self._abstract)

    def axes(self) -> dict:
        """The dict of `init`, of the names of each parameter's last dimensions (logical axes; () for a small one)."""
        names = nnx.to_flat_state(self._abstract)
        return nnx.to_pure_dict(
            nnx.from_flat_state([(path, leaf.replace(leaf.get_metadata().get("axes", ()))) for path, leaf in names])
        )

    def bind(self, params: dict) -> nnx.Module:
        return nnx.merge(self._graphdef, params)
