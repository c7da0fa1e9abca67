"""Angles modulo 2 pi: wrapping, sine and cosine, and the rotation of channel pairs.

Axes: B batch, T time, K heads, G query heads per kv head, H head_dim, P channel pairs.
"""

import math

import jax
import jax.numpy as jnp

# 2 pi = HI + LO. HI has 8 significant bits, so that k * HI is exact for every k that occurs.
HI = 6.28125
LO = 2 * math.pi - HI

# Chebyshev fits in u = (phi / 2)^2 on |phi| <= pi (float64 error 1e-10): sin(phi / 2) / (phi / 2),
# cos(phi / 2).
_SIN = (
  0.999999999983,
  -0.166666666169,
  0.00833333097563,
  -0.000198408613103,
  2.75252744725e-06,
  -2.38892705007e-08,
)
_COS = (
  0.999999999999,
  -0.49999999997,
  0.0416666664729,
  -0.00138888841718,
  2.4801039975e-05,
  -2.75246709134e-07,
  1.99074967394e-09,
)


def wrap(phi):
  """phi - 2 pi floor(phi / 2 pi + 1/2), in [-pi, pi). Derivative 1: the multiple is a constant."""
  turns = jax.lax.stop_gradient(jnp.floor(phi * (0.5 / math.pi) + 0.5))
  return (phi - turns * HI) - turns * LO


def _horner(coefficients, u):
  value = coefficients[-1]
  for c in coefficients[-2::-1]:
    value = value * u + c
  return value


def sincos(phi):
  """(sin phi, cos phi) for |phi| <= pi, float32; absolute error below 7e-7.

  By polynomials of the half angle: they vectorise, where the exact functions with their reduction
  of large arguments are some 25 times slower on a CPU and inaccurate on some accelerators. Cheap
  enough, too, for XLA's habit of fusing them into the rotation and computing them once per rotated
  half.
  """
  half = 0.5 * phi
  u = half * half
  s, c = half * _horner(_SIN, u), _horner(_COS, u)
  return 2 * s * c, 1 - 2 * s * s


def split_pairs(x, rotary_dim: int, layout: str):
  """First and second channel of every pair, and the channels that are not rotated.

  Float32, float32, as is.
  """
  if layout not in ("half", "interleaved"):
    raise ValueError(
      f'layout {layout!r}: use "half" (first and second half) or "interleaved" (even and odd)'
    )
  if rotary_dim % 2 or not 0 < rotary_dim <= x.shape[-1]:
    raise ValueError(
      f"rotary_dim {rotary_dim} of head_dim {x.shape[-1]}: must be even, at least 2, at most head_dim"
    )
  turned = x[..., :rotary_dim].astype(jnp.float32)
  if layout == "half":
    first, second = turned[..., : rotary_dim // 2], turned[..., rotary_dim // 2 :]
  else:
    first, second = turned[..., 0::2], turned[..., 1::2]
  return first, second, x[..., rotary_dim:]


def join_pairs(first, second, rest, layout: str):
  """Inverse of split_pairs, in the dtype of `rest`."""
  if layout == "half":
    turned = jnp.concatenate([first, second], axis=-1)
  else:
    turned = jnp.stack([first, second], axis=-1).reshape(*first.shape[:-1], 2 * first.shape[-1])
  return jnp.concatenate([turned.astype(rest.dtype), rest], axis=-1)


def turn(x_BTNH, cos_BTKP, sin_BTKP, rotary_dim: int, layout: str):
  """y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin; head n of N turns by head n // (N / K) of cos and
  sin.

  cos, sin: leading axes B and T, or 1; K = 1 serves all heads.
  """
  B, T, N, H = x_BTNH.shape
  K = cos_BTKP.shape[2]
  x_BTKGH = x_BTNH.reshape(B, T, K, N // K, H)
  first, second, rest = split_pairs(x_BTKGH, rotary_dim, layout)
  cos, sin = cos_BTKP[:, :, :, None], sin_BTKP[:, :, :, None]
  y = join_pairs(first * cos - second * sin, second * cos + first * sin, rest, layout)
  return y.reshape(x_BTNH.shape)
