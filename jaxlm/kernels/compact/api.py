"""Stable compaction to a static capacity.

Axes: B batch, T position, C capacity. A trailing `...` is any number of feature axes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.choices import note
from jaxlm.kernels.compact import blocks, pallas_tpu, reference, xla
from jaxlm.kernels.platform import target_device_kind

IMPLEMENTATIONS = ("reference", "xla", "pallas")


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
  _known(implementation)
  if implementation == "pallas":
    raise NotImplementedError(
      "compact implementation 'pallas': it moves rows and makes no indices; use implementation=\"xla\" here "
      "and name it in gather, scatter or upsample"
    )
  fn = reference.compact if implementation == "reference" else xla.compact
  return Compaction(*fn(keep_BT, capacity))


def gather(x_BT_, compaction: Compaction, *, implementation: str | None = None, spec=None):
  """y_j = x_{source_j}, zero in invalid slots. (B, T, ...) -> (B, C, ...). Backward: `scatter` (a
  gather, no sum).

  implementation: None, "reference", "xla", "pallas" (TPU kernel, rows (B, T, D)). spec: PartitionSpec
  of x under the context mesh; the kernel needs it there. Also of the functions below.
  """
  if _reads(implementation, x_BT_, spec) == "reference":
    return reference.gather(x_BT_, compaction.source_BC, compaction.valid_BC)
  return _gather(x_BT_, compaction, _kernel(implementation, x_BT_, spec))


def scatter(y_BC_, compaction: Compaction, *, implementation: str | None = None, spec=None):
  """x_t = y_{rank_t} at kept positions, zero elsewhere: the inverse of `gather`.

  (B, C, ...) -> (B, T, ...).
  """
  if _reads(implementation, y_BC_, spec) == "reference":
    return reference.scatter(
      y_BC_, compaction.source_BC, compaction.valid_BC, compaction.rank_BT.shape[1]
    )
  return _scatter(y_BC_, compaction, _kernel(implementation, y_BC_, spec))


def upsample(y_BC_, compaction: Compaction, *, implementation: str | None = None, spec=None):
  """x_t = y_{rank_t}: every position reads the last item kept at or before it; zero before the
  first.

  (B, C, ...) -> (B, T, ...). Backward: the sum over the positions that read a slot, accumulated in
  float32.
  """
  if _reads(implementation, y_BC_, spec) == "reference":
    return reference.upsample(y_BC_, compaction.rank_BT)
  return _upsample(y_BC_, compaction.rank_BT, _kernel(implementation, y_BC_, spec))


def _known(implementation):
  if implementation not in (None, *IMPLEMENTATIONS):
    raise NotImplementedError(
      f"compact has no implementation {implementation!r}; known: {', '.join(IMPLEMENTATIONS)}"
    )


def _takes_kernel(implementation, x, spec) -> bool:
  if implementation is not None:
    return implementation == "pallas"
  preferred = x.ndim == 3 and blocks.prefers_pallas(target_device_kind(), *x.shape[1:])
  return preferred and pallas_tpu.supports(x, spec) is None


def _reads(implementation, x, spec) -> str:
  """The implementation that moves rows x; refused where it is named and not supported."""
  _known(implementation)
  reason = pallas_tpu.supports(x, spec) if implementation == "pallas" else None
  if reason is not None:
    raise NotImplementedError(f"compact implementation 'pallas': {reason}")
  name = "pallas" if _takes_kernel(implementation, x, spec) else implementation or "xla"
  note(
    "compact",
    name,
    {"rows": x},
    named=implementation is not None,
    refused=lambda: {"pallas": pallas_tpu.supports(x, spec)},
  )
  return name


def _kernel(implementation, x, spec) -> tuple:
  """(by the kernel, spec as something that can be compared): static arguments of what follows."""
  return _takes_kernel(implementation, x, spec), None if spec is None else jax.P(*spec)


# gather and scatter are each other's transpose, because a slot holds one position and a position at
# most one slot. Written so, neither direction scatters: both are row gathers, which every platform
# does well.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gather(x_BT_, compaction, kernel):
  by_kernel, spec = kernel
  if by_kernel:
    capacity = compaction.source_BC.shape[1]
    return pallas_tpu.over_batch(
      lambda x, rank, kept: pallas_tpu.to_slots(x, rank, kept, capacity),
      spec,
      x_BT_,
      compaction.rank_BT,
      compaction.kept_BT,
    )
  return xla.gather(x_BT_, compaction.source_BC, compaction.valid_BC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scatter(y_BC_, compaction, kernel):
  by_kernel, spec = kernel
  if by_kernel:
    return pallas_tpu.over_batch(
      pallas_tpu.to_positions, spec, y_BC_, compaction.rank_BT, compaction.kept_BT
    )
  return xla.gather(y_BC_, jnp.maximum(compaction.rank_BT, 0), compaction.kept_BT)


_gather.defvjp(
  lambda x, c, kernel: (_gather(x, c, kernel), c),
  lambda kernel, c, g: (_scatter(g, c, kernel), None),
)
_scatter.defvjp(
  lambda y, c, kernel: (_scatter(y, c, kernel), c),
  lambda kernel, c, g: (_gather(g, c, kernel), None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _upsample(y_BC_, rank_BT, kernel):
  by_kernel, spec = kernel
  if by_kernel:
    return pallas_tpu.over_batch(pallas_tpu.to_positions, spec, y_BC_, rank_BT, rank_BT >= 0)
  return xla.gather(y_BC_, jnp.maximum(rank_BT, 0), rank_BT >= 0)


def _upsample_fwd(y_BC_, rank_BT, kernel):
  return _upsample(y_BC_, rank_BT, kernel), (rank_BT, jnp.zeros((y_BC_.shape[1], 0)))


def _upsample_bwd(kernel, saved, g_BT_):
  (by_kernel, spec), (rank_BT, slots) = kernel, saved
  if by_kernel:
    return pallas_tpu.over_batch(
      lambda g, rank, read: pallas_tpu.to_slots(g, rank, read, slots.shape[0]),
      spec,
      g_BT_,
      rank_BT,
      rank_BT >= 0,
    ), None
  return xla.segment_sum(g_BT_, rank_BT, slots.shape[0]), None


_upsample.defvjp(_upsample_fwd, _upsample_bwd)
