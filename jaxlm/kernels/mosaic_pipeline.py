"""Pieces of Mosaic GPU kernels: products of tiles, and a pipeline of loads between warpgroups.

A block of threads has warpgroups that compute and one, the last, that starts the copies from
device memory. Step n of a loop uses slot n mod `stages` of every buffer: the copying warpgroup
waits until all computing ones have released it.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxlm.kernels.mosaic_support import interpreting

COMPUTE = 2  # computing warpgroups of a block
MEMORY_REGISTERS, COMPUTE_REGISTERS = 24, 240  # per thread: 128 x (24 + 2 x 240) <= 65,536

#: Layouts are those that the kernel states: searching for them takes minutes in a long body.
PARAMETERS = plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane)


def whole(value, shape, dtype=jnp.float32):
  """A constant in the layout of matrix products' results."""
  return plgpu.layout_cast(jnp.full(shape, value, dtype), plgpu.Layout.WGMMA)


def tile(shape, dtype):
  """Shared memory for tiles of 2-byte numbers that the matrix unit reads: swizzled by 128 bytes."""
  return plgpu.SMEM(
    shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
  )


def wide_tile(shape):
  """The same for float32 on its way to device memory."""
  return plgpu.SMEM(
    shape, jnp.float32, transforms=(plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))
  )


def wgmma_layout(v):
  """v, said to be in the layout of products' results: the search for layouts is shorter then."""
  return plgpu.layout_cast(v, plgpu.Layout.WGMMA)


def along(value, size, axis, dtype=jnp.float32):
  """A constant per row (axis 0) or column (axis 1) of such a result."""
  return plgpu.layout_cast(jnp.full((size,), value, dtype), plgpu.Layout.WGMMA.reduce(1 - axis))


def load_along(ref, axis):
  """Numbers per row (axis 0) or column (axis 1) of a product's result, from shared memory."""
  return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1 - axis))


def spread(v, shape, axis):
  """Numbers along `axis`, repeated along the other one."""
  return wgmma_layout(jax.lax.broadcast_in_dim(v, shape, [axis]))


def position(shape, axis):
  return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)


def product(a, b, shape):
  """a b, float32. a: registers or shared memory; b: shared memory."""
  if interpreting() and isinstance(a, jax.Array):
    return _interpreted(a, b)

  def compute(acc):
    plgpu.wgmma(acc, a, b)
    return acc[...]

  return pl.run_scoped(compute, plgpu.ACC(shape, jnp.float32))


def add_product(total, a, b):
  """total + a b."""
  if interpreting():
    return total + product(a, b, total.shape)
  return pl.run_state(lambda acc: plgpu.wgmma(acc, a, b))(plgpu.ACC.init(total))


def _interpreted(a, b):
  """a b. The interpreter knows neither a first factor in registers nor an accumulator that begins
  with a value; factors of float32 hold the same numbers."""
  return jnp.dot(a.astype(jnp.float32), b[...].astype(jnp.float32), precision="highest")


def release(barrier, was_read: bool):
  """The copying warpgroup may overwrite a slot. was_read: by loads, and not by products alone; then
  they are ordered before the copy."""
  if was_read or interpreting():
    plgpu.commit_smem()
  plgpu.barrier_arrive(barrier)


def slot_of(step, stages: int):
  return jax.lax.rem(step, jnp.int32(stages))


def produce(count, stages: int, load, released):
  """load(step, slot) for step 0 .. count - 1. released: barriers, one per slot, of each group of
  buffers that load(step, slot, group) fills."""

  def body(step, _):
    slot = slot_of(step, stages)
    for group, barriers in enumerate(released):

      @pl.when(step >= stages)
      def _(barriers=barriers):
        plgpu.barrier_wait(barriers.at[slot])

      load(step, slot, group)

  jax.lax.fori_loop(0, count, body, None)


def barriers(stages: int, copies: int, compute: int = COMPUTE):
  """(arrived, released): of `copies` copies per slot, and of `compute` warpgroups."""
  return (
    plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
    plgpu.Barrier(num_arrivals=compute, num_barriers=stages),
  )
