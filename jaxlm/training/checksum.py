"""A number per array that any flipped bit changes, whatever the mesh: sum of its 32-bit words, modulo 2^32.

The storage below Orbax has checksums for its index but not for the numbers themselves: one flipped bit of a parameter
is read back without a word. Integer sums do not depend on their order, so every layout gives the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.parallel.rules import path_name


def checksums(tree) -> dict[str, int]:
  """{'params/embed/embedding': 2811293813, ...}"""
  names = [path_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
  leaves = jax.tree.leaves(tree)
  if all(isinstance(x, np.ndarray | np.generic) or x.is_fully_addressable and _on_cpu(x) for x in leaves):
    sums = [_host_sum(np.asarray(x)) for x in leaves]     # nothing to copy, nothing to compile
  else:
    sums = jax.device_get(_device_sums(leaves[0].sharding)(leaves))
  return dict(zip(names, map(int, sums)))


def changed(stored: dict[str, int], tree, at: str = "") -> list[str]:
  """Names of arrays that are not what was stored; `tree` lies at `at` in what `checksums` was given."""
  found = checksums(tree)
  return [name for name, value in found.items() if stored.get(at + name, value) != value]


def _on_cpu(x) -> bool:
  return next(iter(x.devices())).platform == "cpu"


def _host_sum(x: np.ndarray) -> int:
  words = np.ascontiguousarray(x).reshape(-1).view(f"<u{min(x.itemsize, 4)}")
  return int(np.sum(words, dtype=np.uint32))


@functools.cache
def _device_sums(sharding):
  def one(x):
    words = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(
        x, {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32))
    return jnp.sum(words, dtype=jnp.uint32)

  out = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
  return jax.jit(lambda leaves: jnp.stack([one(x) for x in leaves]), out_shardings=out)
