"""Compiler options of the training step by platform: the one place for flags that hide communication behind compute.

They are given to `jax.jit`, not to the environment, so that a plan compiles what a run compiles, and nothing depends on
how a process was started.
"""

# On v5p and v6e the collectives inside a scan of layers are synchronous unless the SparseCore takes them over.
_SPARSE_CORE = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
    "xla_tpu_enable_all_gather_offload_tracing": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": False,
}
# A part of the device's kind -> options; the first that matches. v5e fuses its collectives with compute by default.
OPTIONS = (
    ("TPU v5 lite", {}),
    ("TPU v5e", {}),
    ("TPU v5", _SPARSE_CORE),  # v5p
    ("TPU v6", _SPARSE_CORE),
    ("TPU7x", _SPARSE_CORE),
    # GPUs: collectives start as soon as their operands are there.
    ("NVIDIA", {"xla_gpu_enable_latency_hiding_scheduler": True}),
)


def compiler_options(device_kind: str) -> dict[str, bool]:
    """For `jax.jit(..., compiler_options=)`; nothing for a device that is not in the table."""
    return next((options for kind, options in OPTIONS if kind in device_kind), {})
