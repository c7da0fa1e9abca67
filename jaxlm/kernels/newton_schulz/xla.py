"""Newton-Schulz with a derivative of its own: the symmetry of A makes 4 products a step of the 6
that autodiff takes.

Kept for the backward pass are X, A and P of every step. Who walks over chunks rematerialises this
with each chunk, so that only one chunk's are alive at a time.

Axes: ... any leading axes, M rows (the shorter side), N columns.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def newton_schulz(g_MN, coefficients, eps):
  """The same function as `reference.newton_schulz`; the gradient at G = 0 is finite."""
  x_MN, _ = _normalise(_wide(g_MN), eps)
  for step in coefficients:
    x_MN, _, _ = _step(x_MN, step)
  return _like(x_MN, g_MN)


def _forward(g_MN, coefficients, eps):
  x_MN, norm = _normalise(_wide(g_MN), eps)
  trace = []
  for step in coefficients:
    x_next, a_MM, p_MM = _step(x_MN, step)
    trace.append((x_MN, a_MM, p_MM))
    x_MN = x_next
  return _like(x_MN, g_MN), (g_MN, norm, trace)


def _backward(coefficients, eps, saved, xbar_MN):
  """With P = b A + c A^2 and S = Xbar X^T + X Xbar^T (A, P symmetric):

  dX = a Xbar + P Xbar + (b S + c (S A + A S)) X, where A S = (S A)^T needs no product of its own.
  """
  g_MN, norm, trace = saved
  g_wide, xbar_MN = _wide(g_MN), _wide(xbar_MN)
  for (a, b, c), (x_MN, a_MM, p_MM) in zip(reversed(coefficients), reversed(trace)):
    s_MM = xbar_MN @ x_MN.mT
    s_MM = s_MM + s_MM.mT
    sa_MM = _scale(c, s_MM) @ a_MM
    xbar_MN = _scale(a, xbar_MN) + p_MM @ xbar_MN + (_scale(b, s_MM) + sa_MM + sa_MM.mT) @ x_MN
  # x = g / (r + eps):  gbar = xbar / (r + eps) - g <g, xbar> / (r (r + eps)^2); the second term is
  # 0 at g = 0.
  acc = norm.dtype
  g_wide, xbar_MN = g_wide.astype(acc), xbar_MN.astype(acc)
  inner = jnp.sum(g_wide * xbar_MN, (-2, -1), keepdims=True) / (norm + eps)
  unit = g_wide / jnp.where(norm > 0, norm, 1)
  gbar_MN = (xbar_MN - unit * inner) / (norm + eps)
  return (_like(gbar_MN.astype(g_MN.dtype), g_MN),)


newton_schulz.defvjp(_forward, _backward)


def _wide(x_MN):
  return x_MN.mT if x_MN.shape[-2] > x_MN.shape[-1] else x_MN


def _like(x_MN, like_MN):
  return x_MN if x_MN.shape == like_MN.shape else x_MN.mT


def _normalise(g_MN, eps):
  """(G / (|G| + eps), |G|), the norm accumulated in float32 or better."""
  acc = jnp.promote_types(g_MN.dtype, jnp.float32)
  norm = jnp.sqrt(jnp.sum(jnp.square(g_MN.astype(acc)), (-2, -1), keepdims=True))
  # The divisor has G's precision: in bfloat16 the official iteration starts from a rounded norm.
  return g_MN / (norm + eps).astype(g_MN.dtype), norm


def _step(x_MN, step):
  """(the next X, A, P)."""
  a, b, c = step
  a_MM = x_MN @ x_MN.mT
  # Order and roundings are the official ones, (c A) A and not c (A A): in bfloat16 they are part of
  # the result.
  p_MM = _scale(b, a_MM) + _scale(c, a_MM) @ a_MM
  return _scale(a, x_MN) + p_MM @ x_MN, a_MM, p_MM


def _scale(a, x):
  """a x with `a` in float32 or better: JAX would round a Python number to bfloat16 first."""
  return (a * x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)
