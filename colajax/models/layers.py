"""What the modules share: initialisers, linear layers and norms by precision, rotary positions, stacked layers.

Shape letters, here and in the rest of the models: B samples, C copies, L latents (or positions), N blocks, S positions
of a block, J cached positions, H heads, K head channels, M model width, D latent channels, T tokens, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

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
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def precision_of(dtype) -> jax.lax.Precision:
    """float32 compute is the parity mode: no accelerator may round its operands."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def linear(
    inputs: int, outputs: int, axes: tuple, *, dtype, rngs, bias=True, kernel="kernel", bias_init="bias", result=None
) -> nnx.Linear:  # fmt: skip
    """float32 parameters, operands in `dtype`, the product in `result` (default `dtype`); `kernel` and `bias_init` name
    rows of INIT, axes the kernel's two dimensions. Heads give float32: what follows them (softmax, norm, loss) is
    float32."""
    return nnx.Linear(
        inputs, outputs, use_bias=bias, dtype=dtype, param_dtype=jnp.float32, precision=precision_of(dtype),
        kernel_init=INIT[kernel], bias_init=INIT[bias_init], preferred_element_type=result, rngs=rngs,
        kernel_metadata={"axes": axes},
    )  # fmt: skip


def layer_norm(dim: int, *, eps: float, dtype, rngs, affine=True) -> nnx.LayerNorm:
    """Statistics, scale and shift in float32; the result in `dtype`."""
    return nnx.LayerNorm(
        dim, epsilon=eps, use_bias=affine, use_scale=affine, dtype=dtype, param_dtype=jnp.float32,
        use_fast_variance=False, rngs=rngs,
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


class Functional:
    """A module as two plain functions: `init(key)` draws a plain dict of float32 arrays, `bind(params)` is the module
    over such a dict. The only way in which the rest of the project meets Flax."""

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self._make = make
        self._graphdef, self._abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(self, key: jax.Array) -> dict:
        return nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(key))))

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
