"""Smoothing and upsampling in blocks is the recurrence and the gather, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.compact import compact
from jaxlm.kernels.ema_upsample import ema_upsample


def inputs(batch, length, capacity, width, density, seed=0):
  r = np.random.default_rng(seed)

  def n(*s):
    return jnp.asarray(r.standard_normal(s), jnp.float32)

  c = compact(jnp.asarray(r.random((batch, length)) < density), capacity)
  p = jnp.asarray(r.uniform(1e-4, 1 - 1e-4, (batch, capacity)), jnp.float32)
  return (
    (n(batch, capacity, width), p, n(batch, width)),
    c,
    jnp.asarray(r.random((batch, capacity)) < 0.1),
  )


def run(arguments, c, reset, implementation):
  def loss(x, p, initial):
    y, last = ema_upsample(
      x, p, c, reset_BC=reset, initial_BD=initial, implementation=implementation
    )
    g = jax.random.normal(jax.random.key(0), y.shape)
    return jnp.sum(y * g) + jnp.sum(last**2), (y, last)

  (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*arguments)
  return out, grads


@pytest.mark.parametrize(
  "length, capacity, density",
  [
    (1, 1, 1.0),
    (2, 2, 0.5),
    (63, 40, 0.5),
    (65, 65, 1.0),
    (200, 130, 0.4),
    (130, 20, 0.5),
    (9, 9, 0.0),
  ],
)
def test_equals_the_recurrence_with_gradients(length, capacity, density):
  arguments, c, reset = inputs(3, length, capacity, 5, density)
  got, want = run(arguments, c, reset, None), run(arguments, c, reset, "reference")
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    # Float32 sums in another order, and exp(sum of logs) for a product.
    np.testing.assert_allclose(g, w, rtol=0, atol=1e-5 + 1e-5 * float(jnp.abs(w).max()))


def test_a_weight_of_one_forgets_everything_before_it():
  x = jnp.asarray([[[1.0], [2.0], [4.0]]])
  c = compact(jnp.ones((1, 3), bool), 3)
  y, last = ema_upsample(x, jnp.asarray([[0.5, 1.0, 0.5]]), c, initial_BD=jnp.full((1, 1), 8.0))
  np.testing.assert_allclose(y[0, :, 0], [4.5, 2.0, 3.0], atol=1e-6)
  np.testing.assert_allclose(last, [[3.0]], atol=1e-6)


def test_positions_before_the_first_chunk_read_the_initial_value():
  c = compact(jnp.asarray([[0, 0, 1, 0]], bool), 2)
  y, _ = ema_upsample(
    jnp.ones((1, 2, 1)), jnp.full((1, 2), 0.5), c, initial_BD=jnp.full((1, 1), 3.0)
  )
  np.testing.assert_allclose(y[0, :, 0], [3, 3, 2, 2], atol=1e-6)


def test_what_lies_in_invalid_slots_has_no_influence_and_no_gradient():
  arguments, c, _ = inputs(2, 12, 12, 3, 0.4)
  (y, last), (dx, dp, _) = run(arguments, c, None, None)
  x, p, initial = arguments
  other = jnp.where(c.valid_BC[..., None], x, 1e30), jnp.where(c.valid_BC, p, 0.7), initial
  (y2, last2), _ = run(other, c, None, None)
  np.testing.assert_array_equal(y, y2)
  np.testing.assert_array_equal(last, last2)
  np.testing.assert_array_equal(jnp.where(c.valid_BC, 0, dp), 0)
  np.testing.assert_array_equal(jnp.where(c.valid_BC[..., None], 0, dx), 0)


@pytest.mark.parametrize("length", [64, 100, 200])
def test_weights_that_almost_forget_cost_no_digit(length):
  """1 - P = 6e-8 at every other chunk: chunk by chunk the recurrence in float64, gradients too.

  An error is measured by the sum of the absolute terms that the number is made of: the terms of dP
  cancel, and float32 rounds each of them. The blocks are wrong by 2e-7 of it; decays from
  differences of running sums would be wrong by 2e-5.
  """
  r = np.random.default_rng(0)
  c = compact(jnp.ones((1, length), bool), length)
  p = np.where(np.arange(length) % 2, 1 - 2.0**-24, 1e-3).astype(np.float32)
  x, g = (
    r.standard_normal((length, 3)).astype(np.float32),
    r.standard_normal((length, 3)).astype(np.float32),
  )

  def loss(x, p):
    return (lambda y: (jnp.sum(y * g), y))(ema_upsample(x[None], p[None], c)[0][0])

  def recurrences(x, g):
    """y, h = dy/d(p x) and the value before each chunk, in float64."""
    decay, p64 = np.asarray(np.float32(1) - p, np.float64), p.astype(np.float64)
    z, h = np.zeros((length + 1, 3)), np.zeros((length + 1, 3))
    for t in range(length):
      z[t] = decay[t] * z[t - 1] + p64[t] * x[t]  # z[-1] is zero
    for t in reversed(range(length)):
      h[t] = g[t] + (decay[t + 1] if t + 1 < length else 0) * h[t + 1]
    return z[:length], h[:length], np.concatenate([np.zeros((1, 3)), z[: length - 1]])

  (_, y), (dx, dp) = jax.value_and_grad(loss, (0, 1), has_aux=True)(jnp.asarray(x), jnp.asarray(p))
  z, h, before = recurrences(x, g)
  z_abs, h_abs, before_abs = recurrences(np.abs(x), np.abs(g))
  for got, want, scale in (
    (y, z, z_abs),
    (dx, p[:, None] * h, p[:, None] * h_abs),
    (
      dp[:, None],
      (h * (x - before)).sum(-1, keepdims=True),
      (h_abs * (np.abs(x) + before_abs)).sum(-1, keepdims=True),
    ),
  ):
    error = np.abs(np.asarray(got, np.float64) - want).max(-1)
    assert (error / scale.max(-1)).max() < 2e-6
