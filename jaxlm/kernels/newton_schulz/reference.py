"""Newton-Schulz, the definition: no custom derivative, nothing shared between steps.

Axes: ... any leading axes, M rows, N columns.
"""

import jax.numpy as jnp


def newton_schulz(g_MN, coefficients, eps):
  """X <- a X + (b A + c A^2) X with A = X X^T, from X = G / (|G| + eps), on the short side of G."""
  square = jnp.sum(
    jnp.square(g_MN.astype(jnp.promote_types(g_MN.dtype, jnp.float32))), (-2, -1), keepdims=True
  )
  # sqrt has an infinite derivative at 0 and the chain rule would make it NaN.
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
  x_MN = g_MN / (norm + eps).astype(g_MN.dtype)
  tall = x_MN.shape[-2] > x_MN.shape[-1]
  if tall:
    x_MN = x_MN.mT
  for a, b, c in coefficients:
    a_MM = x_MN @ x_MN.mT
    x_MN = _scale(a, x_MN) + (_scale(b, a_MM) + _scale(c, a_MM) @ a_MM) @ x_MN
  return x_MN.mT if tall else x_MN


def _scale(a, x):
  # A Python number times a bfloat16 array would be rounded to bfloat16 before the product.
  return (a * x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)
