"""GPUs that are not there, for XLA's compiler: needs the CUDA plugin of jax (extra `preflight-gpu`) and
no GPU.

Sizes are those of the makers' data sheets. Kernel choices of a real run differ: nothing is tuned and
no library is asked.
"""

import numpy as np

CHIPS = {
  "H100": dict(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    cores=132,
    shared=232448,
    shared_core=233472,
    fpus=128,
    clock=1.98,
    bandwidth=3.35e12,
    memory=80 * 2**30,
    l2=50 * 2**20,
    feature="ACCELERATED_FEATURES",
  ),
  "A100": dict(
    name="NVIDIA A100-SXM4-80GB",
    major=8,
    cores=108,
    shared=166912,
    shared_core=167936,
    fpus=64,
    clock=1.41,
    bandwidth=2.04e12,
    memory=80 * 2**30,
    l2=40 * 2**20,
    feature="NONE",
  ),
}

_TEXT = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared}
  shared_memory_per_core: {shared_core} core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: {l2} clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} feature_extension: {feature} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "{name}"
"""


class NoPlugin(ImportError):
  pass


def mesh_of(chip: str):
  """A mesh of one such GPU. NoPlugin with the remedy where jax's CUDA plugin is not installed."""
  import importlib.util

  from jax.experimental import topologies
  from jax.sharding import AxisType, Mesh

  if not any(importlib.util.find_spec(f"jax_cuda{v}_plugin") for v in (12, 13)):
    raise NoPlugin("jax's CUDA plugin is not installed; run pip install 'jaxlm[preflight-gpu]'")
  topology = topologies.get_topology_desc(
    platform="cuda", target_config=_TEXT.format(**CHIPS[chip]), topology="1x1x1"
  )
  return Mesh(np.array(topology.devices[:1]), ("data",), axis_types=(AxisType.Auto,))


def compiled(fn, arguments, chip: str):
  """jit(fn) of ShapeDtypeStructs compiled for one GPU of that kind."""
  import jax
  from jax.sharding import NamedSharding, PartitionSpec

  mesh = mesh_of(chip)
  place = NamedSharding(mesh, PartitionSpec())
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
  )
  with jax.set_mesh(mesh):
    return jax.jit(fn).lower(*arguments).compile()
