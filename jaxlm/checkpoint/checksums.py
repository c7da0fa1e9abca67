"""A checksum per array that does not depend on the mesh: 64 bits of every word and of its place.

Orbax's storage has checksums for its index, none for the numbers: a flipped bit of a parameter is
read back and nothing is reported. A step may be written by one mesh and read by another, so that a
checksum of files or of shards could not be compared. This one is a sum over the array's 32-bit
words (16- and 8-bit numbers are a word each)

  h = mix(word ^ mix(place)),   low = sum of h,   high = sum of mix(h + 1),   both modulo 2^32

with the place in the flattened array and murmur3's 32-bit finaliser `mix`, a bijection (A. Appleby,
public domain). Integer sums do not depend on their order. Changing one word always changes `low`;
swapping words or reversing an array changes it as any hash would.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.parallel.rules import path_name

BLOCK = 1 << 16  # words that the host mixes at a time, so that they stay in its cache


def checksums(tree) -> dict[str, str]:
  """{'params/embed/embedding': '00c1e6f2a78f9a35', ...}"""
  return _of(tree, _host_sum, _device_sum, lambda pair: f"{int(pair[1]):08x}{int(pair[0]):08x}")


def word_sums(tree) -> dict[str, int]:
  """The checksums of steps of format 1: sums of words, which do not see their order."""

  def plain(words, place, np):
    return (words, words)

  return _of(
    tree,
    functools.partial(_host_sum, mixed=plain),
    functools.partial(_device_sum, mixed=plain),
    lambda pair: int(pair[0]),
  )


def differing(stored: dict, found: dict, at: str = "") -> list[str]:
  """Names in `found` whose checksum is not the stored one, or was not stored. at: where the tree
  lies in what was stored.
  """
  return [name for name, value in found.items() if stored.get(at + name) != value]


def _mix(x, np):
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return x ^ (x >> np.uint32(16))


def _mixed(words, place, np):
  """(terms of low, terms of high). np: numpy or jax.numpy."""
  h = _mix(words ^ _mix(place, np), np)
  return h, _mix(h + np.uint32(1), np)


def _of(tree, host, device, text) -> dict:
  names = [path_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
  leaves = jax.tree.leaves(tree)
  if all(
    isinstance(x, np.ndarray | np.generic) or x.is_fully_addressable and _on_cpu(x) for x in leaves
  ):
    pairs = [host(np.asarray(x)) for x in leaves]  # nothing to copy, nothing to compile
  else:
    pairs = jax.device_get(_device_sums(leaves[0].sharding, device)(leaves))
  return {name: text(pair) for name, pair in zip(names, pairs)}


def _on_cpu(x) -> bool:
  return next(iter(x.devices())).platform == "cpu"


def _host_sum(x: np.ndarray, mixed=_mixed) -> tuple[int, int]:
  words = np.ascontiguousarray(x).reshape(-1).view(f"<u{min(x.itemsize, 4)}")
  low = high = 0
  with np.errstate(over="ignore"):
    for start in range(0, words.size, BLOCK):
      block = words[start : start + BLOCK].astype(np.uint32)
      place = (np.arange(start, start + block.size, dtype=np.int64) & 0xFFFFFFFF).astype(np.uint32)
      a, b = mixed(block, place, np)
      low, high = low + int(np.sum(a, dtype=np.uint64)), high + int(np.sum(b, dtype=np.uint64))
  return low & 0xFFFFFFFF, high & 0xFFFFFFFF


def _device_sum(x, mixed=_mixed):
  words = (
    x.astype(jnp.uint8)
    if x.dtype == jnp.bool_
    else jax.lax.bitcast_convert_type(
      x, {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    )
  )
  words = words.astype(jnp.uint32)
  place, stride = jnp.zeros(words.shape, jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(
      stride & 0xFFFFFFFF
    )
    stride *= words.shape[axis]
  a, b = mixed(words, place, jnp)
  return jnp.stack([jnp.sum(a, dtype=jnp.uint32), jnp.sum(b, dtype=jnp.uint32)])


@functools.cache
def _device_sums(sharding, device):
  out = (
    NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
  )
  return jax.jit(lambda leaves: jnp.stack([device(x) for x in leaves]), out_shardings=out)
