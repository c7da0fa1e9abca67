"""TPU compiler options that matter: the one place, with a reason each.

The trainer's programs carry them (`training.step`), and preflight compiles those same programs. A
compiler that does not know one of them says so by name; `JAXLM_COMPILER_OPTIONS=off` trains without
any.
"""

import os

# Windowed einsum turns the weight gathers of FSDP into rings of thin matmuls. At d_model 768 over
# 16 chips a shard has 48 rows on a 128-wide unit: matmul time grows 2.5 times and temporaries
# nearly double (measured by compilation).
_NO_WINDOWED_EINSUM = (
  (
    "xla_jf_spmd_threshold_for_windowed_einsum_mib",
    "1000000",
    "weight gathers stay gathers; rings of thin matmuls cost 2.5x matmul time on small models",
  ),
)

# Without these the compiler all-reduces gradients and slices them: twice the bytes on the wire.
_SPARSE_CORE_SCATTER = (
  (
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter",
    "true",
    "gradients are reduce-scattered on the SparseCores instead of all-reduced and sliced: half the bytes",
  ),
  (
    "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter",
    "true",
    "the same for slices of two and three dimensions; has no effect without the first",
  ),
  (
    "xla_tpu_use_tc_device_shape_on_sc",
    "true",
    "SparseCore programs see the TensorCore's slice shape; needed by both",
  ),
)

# Over all three dimensions of a torus (v5p:4x4x4) the TensorCore's gather is rewritten as an
# all-reduce of zeros and one
# shard: twice the bytes. Over one or two dimensions it stays a gather, so slices of v5e and v6e do
# not need these.
_SPARSE_CORE_GATHER = (
  (
    "xla_tpu_enable_sparse_core_collective_offload_all_gather",
    "true",
    "weights are gathered by the SparseCores instead of all-reduced from zeros: half the bytes",
  ),
  (
    "xla_tpu_prefer_async_allgather_to_allreduce",
    "true",
    "a gather that can run beside the matmuls is kept although an all-reduce alone is the shorter; needed by the first",
  ),
)

#: device kind -> (option, value, reason)
OPTIONS = {
  "TPU v4": _NO_WINDOWED_EINSUM,
  "TPU v5 lite": _NO_WINDOWED_EINSUM,
  "TPU v5": _NO_WINDOWED_EINSUM + _SPARSE_CORE_SCATTER + _SPARSE_CORE_GATHER,
  "TPU v6 lite": _NO_WINDOWED_EINSUM + _SPARSE_CORE_SCATTER,
}


def compiler_options(device_kind: str, environ=os.environ) -> dict[str, str]:
  """For `jax.jit(compiler_options=...)`; empty for other devices."""
  if environ.get("JAXLM_COMPILER_OPTIONS") == "off":
    return {}
  return {name: value for name, value, _ in OPTIONS.get(device_kind, ())}
