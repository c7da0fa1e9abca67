"""Taps: named places of a network where an activation can be recorded, and changed, from outside.

A tap is the identity. It records into the collection `intermediates` where that is mutable, and
applies the edit that the collection `edits` holds for it. Neither adds a parameter, and without
them the compiled program is the same. Both collections are stacked over layers like the parameters
(`STACKED`), so one edit can differ from layer to layer.

Which sites there are: docs/taps.md.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

#: Of the attention weights, by column and row: recorded, not edited.
STATISTICS = "attention_statistics"
#: Collections whose values have a leading layers axis under `nn.scan`, with that axis.
STACKED = {"params": 0, "intermediates": 0, "edits": 0, "attention": 0, "taps": 0, STATISTICS: 0}


@struct.dataclass
class Edit:
  """x <- fn(where(mask, value, x) * scale + add, layer), in x's dtype. What is None is left out.

  scale, add, value, mask: broadcast against x; under a stack they have a leading layers axis. mask
  None: everywhere.
  layer: int32, the number of the layer, given to fn; fn: a function of (x, layer) that JAX can
  trace.
  keep_norm: the result is scaled to the norm that x had, along the last axis.
  """

  scale: Any = None
  add: Any = None
  value: Any = None
  mask: Any = None
  layer: Any = None
  fn: Callable | None = struct.field(pytree_node=False, default=None)
  keep_norm: bool = struct.field(pytree_node=False, default=False)

  def __call__(self, x):
    y, like = x, lambda v, dtype=x.dtype: _of_rank(jnp.asarray(v, dtype), x.ndim)
    if self.value is not None:
      y = jnp.where(True if self.mask is None else like(self.mask, bool), like(self.value), y)
    if self.scale is not None:
      y = y * like(self.scale)
    if self.add is not None:
      y = y + like(self.add)
    if self.fn is not None:
      y = self.fn(y, self.layer)
    if y.shape != x.shape:
      raise ValueError(
        f"an edit turns an activation of shape {x.shape} into {y.shape}; scale, add, value and mask must "
        f"broadcast to it, and fn must keep it"
      )
    if self.keep_norm:
      y = _with_norm_of(x, y)
    return y.astype(x.dtype)


def _with_norm_of(x, y):
  """y |x| / |y| along the last axis; a zero y stays 0."""

  def norm(v):
    return jnp.sqrt(jnp.sum(jnp.square(v.astype(jnp.float32)), axis=-1, keepdims=True))

  of_y = norm(y)
  return y.astype(jnp.float32) * (norm(x) / jnp.where(of_y == 0, 1.0, of_y))


def _of_rank(v, rank: int):
  """v with axes of size 1 in front: the last axes are aligned."""
  return v.reshape((1,) * (rank - v.ndim) + v.shape)


def tap(module: nn.Module, site: str, x: jax.Array) -> jax.Array:
  """x, or what the edit of this site makes of it; recorded where `intermediates` is mutable."""
  if module.has_variable("edits", site):
    x = module.get_variable("edits", site)(x)
  module.sow("intermediates", site, x)
  if not module.is_initializing():  # where every collection but `intermediates` is mutable
    module.sow("taps", site, x)  # only taps are in there: which sites there are (jaxlm.analysis)
  return x


def recorded_collections(module: nn.Module) -> list[str]:
  """The collections that taps are being recorded into."""
  names = ("intermediates", "taps", "attention", STATISTICS)
  return [name for name in names if module.is_mutable_collection(name)]


def wants_attention(module: nn.Module) -> bool:
  """Whether the whole attention matrix is asked for, which costs (T, S) memory: the collection
  `attention` is mutable.
  """
  return module.is_mutable_collection("attention") and not module.is_initializing()
