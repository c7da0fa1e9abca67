"""Stable compaction to a static capacity.

Axes: B batch, T position, C capacity. A trailing `...` is any number of feature axes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.choices import note
from jaxlm.kernels.compact import reference, xla

IMPLEMENTATIONS = {"reference": reference, "xla": xla}


class Compaction(NamedTuple):
  """Where every kept position went, and where every slot came from.

  source_BC: int32, position of the j-th kept item; 0 where not valid.
  valid_BC: bool, slot j holds an item: j < min(count, C). A suffix is invalid.
  rank_BT: int32, slot of the last item kept at or before t: cumsum(keep) - 1, at most C - 1; -1
  before the first.
  kept_BT: bool, t is in the buffer: keep, less what did not fit.
  count_B: int32, number of positions asked to be kept; may exceed C.
  overflow_B: bool, count > C: the last count - C items are missing.
  """

  source_BC: jax.Array
  valid_BC: jax.Array
  rank_BT: jax.Array
  kept_BT: jax.Array
  count_B: jax.Array
  overflow_B: jax.Array


def compact(keep_BT, capacity: int, *, implementation: str | None = None) -> Compaction:
  """source_j = position of the j-th True of keep_BT, j < capacity. keep: bool. Not differentiable.

  capacity: static, 1 .. any; a capacity of T never overflows. Order is kept; on overflow the *last*
  items are left out and `overflow_B` says so: the caller redoes the step with a larger capacity, or
  clips knowingly.
  """
  if capacity < 1:
    raise ValueError(
      f"capacity {capacity}: a buffer needs at least one slot; give 1 .. {keep_BT.shape[1]}"
    )
  if keep_BT.dtype != bool:
    raise TypeError(f"keep is {keep_BT.dtype}, wanted bool: a threshold belongs to the caller")
  note("compact", implementation or "xla", {"keep": keep_BT}, named=implementation is not None)
  return Compaction(*_module(implementation).compact(keep_BT, capacity))


def gather(x_BT_, compaction: Compaction, *, implementation: str | None = None):
  """y_j = x_{source_j}, zero in invalid slots. (B, T, ...) -> (B, C, ...). Backward: `scatter` (a
  gather, no sum).
  """
  if implementation == "reference":
    return reference.gather(x_BT_, compaction.source_BC, compaction.valid_BC)
  _module(implementation)
  return _gather(x_BT_, compaction)


def scatter(y_BC_, compaction: Compaction, *, implementation: str | None = None):
  """x_t = y_{rank_t} at kept positions, zero elsewhere: the inverse of `gather`.

  (B, C, ...) -> (B, T, ...).
  """
  if implementation == "reference":
    return reference.scatter(
      y_BC_, compaction.source_BC, compaction.valid_BC, compaction.rank_BT.shape[1]
    )
  _module(implementation)
  return _scatter(y_BC_, compaction)


def upsample(y_BC_, compaction: Compaction, *, implementation: str | None = None):
  """x_t = y_{rank_t}: every position reads the last item kept at or before it; zero before the
  first.

  (B, C, ...) -> (B, T, ...). Backward: the sum over the positions that read a slot, accumulated in
  float32.
  """
  if implementation == "reference":
    return reference.upsample(y_BC_, compaction.rank_BT)
  _module(implementation)
  return _upsample(y_BC_, compaction.rank_BT)


def _module(implementation):
  if implementation not in (None, *IMPLEMENTATIONS):
    raise NotImplementedError(
      f"compact has no implementation {implementation!r}; known: {', '.join(IMPLEMENTATIONS)}"
    )
  return IMPLEMENTATIONS[implementation or "xla"]


# gather and scatter are each other's transpose, because a slot holds one position and a position at
# most one slot. Written so, neither direction scatters: both are row gathers, which every platform
# does well.


@jax.custom_vjp
def _gather(x_BT_, compaction):
  return xla.gather(x_BT_, compaction.source_BC, compaction.valid_BC)


@jax.custom_vjp
def _scatter(y_BC_, compaction):
  return xla.gather(y_BC_, jnp.maximum(compaction.rank_BT, 0), compaction.kept_BT)


_gather.defvjp(lambda x, c: (_gather(x, c), c), lambda c, g: (_scatter(g, c), None))
_scatter.defvjp(lambda y, c: (_scatter(y, c), c), lambda c, g: (_gather(g, c), None))


@jax.custom_vjp
def _upsample(y_BC_, rank_BT):
  return xla.gather(y_BC_, jnp.maximum(rank_BT, 0), rank_BT >= 0)


def _upsample_fwd(y_BC_, rank_BT):
  return _upsample(y_BC_, rank_BT), (rank_BT, jnp.zeros((y_BC_.shape[1], 0)))


def _upsample_bwd(saved, g_BT_):
  rank_BT, slots = saved
  return xla.segment_sum(g_BT_, rank_BT, slots.shape[0]), None


_upsample.defvjp(_upsample_fwd, _upsample_bwd)
