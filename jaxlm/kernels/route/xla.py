"""One projection of each row (the shift comes after it), three sums, no normalised vectors in memory."""

import jax.numpy as jnp


def cosine(first_BD, x_BTD, w_q_DE, w_k_DE):
  """first_BD: the row before x_0. The projections are accumulated and the cosine taken in float32."""
  f32 = jnp.float32
  q_BTE = jnp.einsum("btd,de->bte", jnp.concatenate([first_BD[:, None], x_BTD[:, :-1]], 1), w_q_DE,
                     preferred_element_type=f32)
  k_BTE = jnp.einsum("btd,de->bte", x_BTD, w_k_DE, preferred_element_type=f32)
  # max(., 1e-24) under the root is max(norm, 1e-12), and its derivative at zero is zero. Divided one after the
  # other: the square of a product of two such norms, which the derivative needs, is zero in float32.
  norm = lambda v: jnp.sqrt(jnp.maximum(jnp.sum(v * v, -1), 1e-24))
  return jnp.sum(q_BTE * k_BTE, -1) / norm(q_BTE) / norm(k_BTE)
