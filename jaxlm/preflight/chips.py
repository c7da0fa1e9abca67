"""Chips that a configuration can be compiled for: peaks, capacities, clocks, compiler options, each with its source.

Peaks, HBM and slice shapes: Google Cloud's "TPU system architecture" pages; the per-core values agree with those
compiled into `jax.experimental.pallas.tpu.get_tpu_info_for_chip` (v4 and v5p count two cores as one device).
Interconnect: one-way bandwidth per link and links per chip as in the scaling book (github.com/jax-ml/scaling-book).
Clocks are not published as such: they follow from peak = 2 x multiply-adds per cycle x clock.
"""

import dataclasses

from jaxlm.config import ConfigError, nearest

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
  name: str
  device_kind: str                # what the runtime calls it
  peak_flops: float               # bf16 FLOP/s of one device
  hbm_bytes: int                  # usable by a program, as the compiler counts (see `usable`)
  hbm_bandwidth: float            # bytes/s
  link_bandwidth: float           # bytes/s, one way, one link
  links: int
  clock_hz: float
  sparse_cores: bool
  default_topologies: tuple[str, ...]
  compiler_options: tuple[tuple[str, str, str], ...] = ()    # (option, value, reason)

  @property
  def wire_bandwidth(self) -> float:
    """Bytes/s one chip can receive with every link busy: optimistic for slices that do not wrap around."""
    return self.link_bandwidth * self.links

  @property
  def options(self) -> dict[str, str]:
    return {name: value for name, value, _ in self.compiler_options}


# Windowed einsum turns the weight gathers of FSDP into rings of thin matmuls. At d_model 768 over 16 chips a shard has
# 48 rows on a 128-wide unit: matmul time grows 2.5 times and temporaries nearly double (measured by compilation).
_NO_WINDOWED_EINSUM = ("xla_jf_spmd_threshold_for_windowed_einsum_mib", "1000000",
                       "weight gathers stay gathers; rings of thin matmuls cost 2.5x matmul time on small models")

# Without these the compiler all-reduces gradients and slices them: twice the bytes on the wire.
_SPARSE_CORE_SCATTER = (
    ("xla_tpu_enable_sparse_core_collective_offload_reduce_scatter", "true",
     "gradients are reduce-scattered on the SparseCores instead of all-reduced and sliced: half the bytes"),
    ("xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter", "true",
     "the same for slices of two and three dimensions; has no effect without the first"),
    ("xla_tpu_use_tc_device_shape_on_sc", "true", "SparseCore programs see the TensorCore's slice shape; needed by both"),
)

# Over all three dimensions of a torus (v5p:4x4x4) the TensorCore's gather is rewritten as an all-reduce of zeros and one
# shard: twice the bytes. Over one or two dimensions it stays a gather, so slices of v5e and v6e do not need these.
_SPARSE_CORE_GATHER = (
    ("xla_tpu_enable_sparse_core_collective_offload_all_gather", "true",
     "weights are gathered by the SparseCores instead of all-reduced from zeros: half the bytes"),
    ("xla_tpu_enable_sparse_core_collective_offload_3d_all_gather", "true",
     "the same over all three dimensions of a slice; has no effect without the first"),
    ("xla_tpu_prefer_async_allgather_to_allreduce", "true",
     "a gather that can run beside the matmuls is kept although an all-reduce would be the shorter one alone"),
    ("xla_enable_async_all_gather", "true", "gathers run beside the matmuls; needed by the one before"),
)

CHIPS = {chip.name: chip for chip in (
    Chip("v4", "TPU v4", 275e12, 32 * GIB, 1.23e12, 45e9, 6, 1.05e9, False,
         ("v4:2x2x1", "v4:2x2x4", "v4:4x4x4", "v4:4x4x8", "v4:8x8x8"), (_NO_WINDOWED_EINSUM,)),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * GIB, 0.819e12, 45e9, 4, 1.5e9, False,
         ("v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"),
         (_NO_WINDOWED_EINSUM,)),
    Chip("v5p", "TPU v5", 459e12, 95 * GIB, 2.765e12, 90e9, 6, 1.75e9, True,
         ("v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4", "v5p:4x4x4", "v5p:4x4x8", "v5p:4x8x8", "v5p:8x8x8"),
         (_NO_WINDOWED_EINSUM, *_SPARSE_CORE_SCATTER, *_SPARSE_CORE_GATHER)),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * GIB, 1.64e12, 90e9, 4, 1.75e9, True,
         ("v6e:1x1", "v6e:2x2", "v6e:2x4", "v6e:4x4", "v6e:4x8", "v6e:8x8", "v6e:8x16", "v6e:16x16"),
         (_NO_WINDOWED_EINSUM, *_SPARSE_CORE_SCATTER)),
)}


def chip_of(topology: str) -> Chip:
  """The chip of a topology name such as 'v5e:4x4'."""
  name = topology.split(":")[0]
  if name not in CHIPS:
    raise ConfigError(f"topology {topology!r}: no chip {name!r}; {nearest(name, CHIPS)} (form: chip:AxB or chip:AxBxC)")
  return CHIPS[name]


def known_topologies() -> list[str]:
  return [t for chip in CHIPS.values() for t in chip.default_topologies]
