"""One product with both projections, three sums, no normalised vectors in memory."""

import jax
import jax.numpy as jnp

from jaxlm.kernels.platform import target_platform
from jaxlm.kernels.sums import sum_of_products


def _project(x_BTD, w_DE):
  """x w, float32.

  On one CPU batch and time are merged first, which its compiler multiplies faster.
  """
  if target_platform() != "cpu" or jax.sharding.get_abstract_mesh().size > 1:
    return jnp.einsum("btd,de->bte", x_BTD, w_DE, preferred_element_type=jnp.float32)
  y = jnp.dot(x_BTD.reshape(-1, x_BTD.shape[-1]), w_DE, preferred_element_type=jnp.float32)
  return y.reshape(*x_BTD.shape[:2], -1)


def cosine(first_BD, x_BTD, w_q_DE, w_k_DE):
  """first_BD: the row before x_0.

  The projections are accumulated and the cosine taken in float32.
  """
  q_BTE, k_BTE = jnp.split(_project(x_BTD, jnp.concatenate([w_q_DE, w_k_DE], axis=1)), 2, axis=-1)
  first_B1E = _project(first_BD[:, None], w_q_DE)

  # max(., 1e-24) under the root is max(norm, 1e-12), and its derivative at zero is zero. Divided
  # one after the
  # other: the square of a product of two such norms, which the derivative needs, is zero in
  # float32.
  def norm(v):
    return jnp.sqrt(jnp.maximum(sum_of_products(v, v, -1), 1e-24))

  # The sums are shifted, not the rows.
  def after(first_B1, rest_BT):
    return jnp.concatenate([first_B1, rest_BT], axis=1)

  dot_BT = after(
    sum_of_products(first_B1E, k_BTE[:, :1], -1), sum_of_products(q_BTE[:, :-1], k_BTE[:, 1:], -1)
  )
  return dot_BT / after(norm(first_B1E), norm(q_BTE)[:, :-1]) / norm(k_BTE)
