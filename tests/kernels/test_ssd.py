"""The chunked scan is the recurrence, in both directions, whatever the chunk, the resets and the
groups.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.ssd import shapes, ssd


def inputs(shape, seed=0, dtype=jnp.float32):
  B, T, N, H, K, E = shape
  r = np.random.default_rng(seed)

  def n(*s):
    return jnp.asarray(r.standard_normal(s), jnp.float32)

  return dict(
    x_BTNH=n(B, T, N, H).astype(dtype),
    dt_BTN=jax.nn.softplus(n(B, T, N)),
    a_N=-jnp.exp(n(N)),
    b_BTKE=n(B, T, K, E).astype(dtype),
    c_BTKE=n(B, T, K, E).astype(dtype),
    d_N=n(N),
    initial_state_BNHE=n(B, N, H, E),
  )


def run(arguments, reset, seed=1, **options):
  """Outputs and gradients of <y, G> + <state, G2>."""

  def loss(arguments):
    y, state = ssd(**arguments, reset_BT=reset, **options)
    g = jax.random.normal(jax.random.key(seed), y.shape)
    g2 = jax.random.normal(jax.random.key(seed + 1), state.shape)
    return jnp.sum(y.astype(jnp.float32) * g) + jnp.sum(state * g2), (y, state)

  (_, out), grads = jax.value_and_grad(loss, has_aux=True)(arguments)
  return out, grads


def assert_close(got, want, relative):
  for (path, g), (_, w) in zip(*map(jax.tree_util.tree_leaves_with_path, (got, want))):
    np.testing.assert_allclose(
      np.asarray(g, np.float32),
      np.asarray(w, np.float32),
      rtol=0,
      atol=1e-5 + relative * float(jnp.abs(w).max()),
      err_msg=jax.tree_util.keystr(path),
    )


# A chunk of one token unrolls the sequence: one shape by default, the others are slow.
CHUNKS_AND_SHAPES = [
  pytest.param(chunk, shape, marks=[pytest.mark.slow] if chunk == 1 and shape is not first else [])
  for first in shapes.SMALL[:1]
  for shape in shapes.SMALL
  for chunk in (1, 8, 64)
]


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("chunk, shape", CHUNKS_AND_SHAPES)
def test_equals_the_recurrence_with_gradients(shape, chunk):
  arguments = inputs(shape)
  reset = jnp.asarray(np.random.default_rng(2).random(shape[:2]) < 0.15)
  # Float32 rounding of sums in another order.
  assert_close(
    run(arguments, reset, chunk=chunk), run(arguments, reset, implementation="reference"), 2e-5
  )


def test_bfloat16_products_stay_near_the_float32_recurrence():
  arguments = inputs((2, 40, 4, 8, 2, 8), dtype=jnp.bfloat16)
  # 8 bits of mantissa, sums of tens of terms.
  assert_close(
    run(arguments, None, chunk=16), run(arguments, None, implementation="reference"), 3e-2
  )


def test_bfloat16_gradients_of_fast_decays_are_not_rounding_noise():
  """Their true values are small: of dy.y and u.du, which cancel, the same rounded u must be in
  both.
  """
  arguments = inputs((1, 64, 2, 64, 1, 32), dtype=jnp.bfloat16)
  arguments |= dict(dt_BTN=jnp.full_like(arguments["dt_BTN"], 0.3), a_N=jnp.full(2, -16.0))
  (_, got), (_, want) = (
    run(arguments, None, **options)
    for options in (dict(chunk=64), dict(implementation="reference"))
  )
  error = jnp.linalg.norm(got["a_N"] - want["a_N"]) / jnp.linalg.norm(want["a_N"])
  assert error < 2e-2, error


def test_a_token_with_zero_step_leaves_the_state():
  arguments = inputs((1, 9, 2, 4, 1, 3))
  arguments["dt_BTN"] = arguments["dt_BTN"].at[:, 5:].set(0)
  _, state = ssd(**arguments, chunk=4)
  head = {
    k: v[:, :5] if k in ("x_BTNH", "dt_BTN", "b_BTKE", "c_BTKE") else v
    for k, v in arguments.items()
  }
  chex.assert_trees_all_close(state, ssd(**head, chunk=4)[1], atol=1e-6)


def test_a_packed_row_equals_its_documents_apart():
  arguments = inputs((1, 20, 2, 4, 1, 3))
  del arguments["initial_state_BNHE"]
  reset = jnp.zeros((1, 20), bool).at[0, jnp.array([0, 7, 8])].set(True)
  y, _ = ssd(**arguments, reset_BT=reset, chunk=8)
  parts = [
    ssd(
      **{
        k: v[:, i:j] if k in ("x_BTNH", "dt_BTN", "b_BTKE", "c_BTKE") else v
        for k, v in arguments.items()
      }
    )[0]
    for i, j in [(0, 7), (7, 8), (8, 20)]
  ]
  chex.assert_trees_all_close(y, jnp.concatenate(parts, 1), atol=1e-5)


def test_strong_decay_over_a_long_chunk_stays_finite():
  arguments = inputs((1, 256, 1, 4, 1, 3))
  arguments["dt_BTN"] = arguments["dt_BTN"] * 50
  out, grads = run(arguments, None, chunk=256)
  assert all(bool(jnp.isfinite(v).all()) for v in jax.tree.leaves((out, grads)))


def test_heads_that_do_not_divide_into_groups_are_refused():
  with pytest.raises(ValueError, match="3 heads do not divide into 2 groups"):
    ssd(**inputs((1, 4, 3, 4, 2, 3)))
