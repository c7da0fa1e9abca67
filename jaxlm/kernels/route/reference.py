"""The definition: normalised projections of neighbours, float32."""

import jax.numpy as jnp


def _normalise(v_BTD):
  square_BT1 = jnp.sum(v_BTD * v_BTD, -1, keepdims=True)
  # Selected before the root: the derivative of a norm at zero is not a number.
  norm_BT1 = jnp.sqrt(jnp.where(square_BT1 > 0, square_BT1, 1)) * (square_BT1 > 0)
  return v_BTD / jnp.maximum(norm_BT1, 1e-12)


def cosine(previous_BTD, x_BTD, w_q_DE, w_k_DE):
  f32 = jnp.float32
  q_BTE = jnp.einsum("btd,de->bte", previous_BTD, w_q_DE, preferred_element_type=f32)
  k_BTE = jnp.einsum("btd,de->bte", x_BTD, w_k_DE, preferred_element_type=f32)
  return jnp.sum(_normalise(q_BTE) * _normalise(k_BTE), -1)
