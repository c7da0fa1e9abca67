"""A sum of products, in a form that a CPU is fast at."""

import jax.numpy as jnp


def sum_of_products(a, b, axis):
  """sum(a * b, axis) of equal shapes. Axes of size 1 are taken out for it.

  The library to which XLA's CPU compiler hands a product and its sum together takes 3 to 50 times
  as long where such an axis is kept (bench/RESULTS.md, "Sums on a CPU"). It is nothing to any other
  compiler.
  """
  axes = {i % a.ndim for i in ((axis,) if isinstance(axis, int) else axis)}
  kept = [i for i, size in enumerate(a.shape) if size != 1]

  def squeeze(v):
    return v.reshape([v.shape[i] for i in kept])

  total = jnp.sum(squeeze(a) * squeeze(b), axis=tuple(n for n, i in enumerate(kept) if i in axes))
  return total.reshape([size for i, size in enumerate(a.shape) if i not in axes])
