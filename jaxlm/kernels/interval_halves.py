"""Decays between two positions of a chunk, for kernels: sums of their own terms, by halving.

Axes: Q, R two positions of one chunk, a power of two long; X any other axis.

Let R < Q, and l the highest bit in which they differ. The multiple m of 2^l with R < m <= Q is one
and the same for all pairs of two neighbouring blocks of 2^l positions, so that

  sum_{R < t <= Q} v_t = near_l[R] + near_l[Q],   near_l[R] = sum_{R < t < m} v_t,
                                                  near_l[Q] = sum_{m <= t <= Q} v_t.

A decay is then a product of a number of R and a number of Q, and what is summed over pairs of level
l is a matrix product of scaled rows, masked by `pair_levels`. Nothing is subtracted: a token that
forgets all costs no other pair a digit, and the gradient of v_t is a sum over pairs that span t.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

#: exp of it is 0 in float32, and of any sum with it. Finite, so that 0 x FLOOR is 0.
FLOOR = -1000.0


def num_levels(size: int) -> int:
  """Of a chunk of `size` positions, a power of two."""
  return size.bit_length() - 1


def upper_half(shape, level: int, axis: int):
  """Where a position is in the later one of two neighbouring blocks of 2^level: bool of `shape`."""
  position = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
  return (position & (1 << level)) != 0


def pair_levels(size: int):
  """(size, size) int32: the highest bit in which two positions differ, negative where they are one."""
  one, other = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
  as_float = (one ^ other).astype(jnp.float32)  # its exponent is the highest bit
  return (jax.lax.bitcast_convert_type(as_float, jnp.int32) >> 23) - 127


def below(size: int):
  """(Q, R): R < Q."""
  row, column = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
  return row > column


def eye(size: int):
  row, column = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
  return row == column


def _neighbour(v, level: int, axis: int):
  """Of position i: v of i with bit `level` turned."""
  size, step = v.shape[axis], 1 << level
  return jnp.where(
    upper_half(v.shape, level, axis),
    pltpu.roll(v, step, axis),
    pltpu.roll(v, size - step, axis),
  )


def near_sums(v, axis: int, neighbour=_neighbour):
  """(near, start, end): near[l] as above; start[Q] = sum_{t <= Q} v_t, end[R] = sum_{t > R} v_t.

  neighbour: another form of `_neighbour`, which rolls as TPU kernels do.
  """
  start, end = v, jnp.zeros_like(v)
  near = []
  for level in range(num_levels(v.shape[axis])):
    upper = upper_half(v.shape, level, axis)
    near.append(jnp.where(upper, start, end))
    other = neighbour(start + end, level, axis)  # the sum of the neighbouring block
    start, end = start + jnp.where(upper, other, 0.0), end + jnp.where(upper, 0.0, other)
  return near, start, end


def near_sums_transposed(d_near, d_start, d_end, axis: int):
  """The gradient of v in `near_sums`."""
  for level in reversed(range(len(d_near))):
    upper = upper_half(d_start.shape, level, axis)
    other = _neighbour(jnp.where(upper, d_start, d_end), level, axis)
    d_start = d_start + other + jnp.where(upper, d_near[level], 0.0)
    d_end = d_end + other + jnp.where(upper, 0.0, d_near[level])
  return d_start
