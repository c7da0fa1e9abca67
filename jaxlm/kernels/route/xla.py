"""One product with both projections (the shift comes after it), three sums, no normalised vectors in memory."""

import jax
import jax.numpy as jnp

from jaxlm.kernels.platform import target_platform


def _project(x_BTD, w_DE):
  """x w, float32. On one CPU batch and time are merged first, which its compiler multiplies faster."""
  if target_platform() != "cpu" or jax.sharding.get_abstract_mesh().size > 1:
    return jnp.einsum("btd,de->bte", x_BTD, w_DE, preferred_element_type=jnp.float32)
  y = jnp.dot(x_BTD.reshape(-1, x_BTD.shape[-1]), w_DE, preferred_element_type=jnp.float32)
  return y.reshape(*x_BTD.shape[:2], -1)


def cosine(first_BD, x_BTD, w_q_DE, w_k_DE):
  """first_BD: the row before x_0. The projections are accumulated and the cosine taken in float32."""
  E = w_q_DE.shape[1]
  both_BTE = _project(x_BTD, jnp.concatenate([w_q_DE, w_k_DE], axis=1))
  first_B1E = _project(first_BD[:, None], w_q_DE)
  q_BTE = jnp.concatenate([first_B1E, both_BTE[:, :-1, :E]], axis=1)
  k_BTE = both_BTE[..., E:]
  # max(., 1e-24) under the root is max(norm, 1e-12), and its derivative at zero is zero. Divided one after the
  # other: the square of a product of two such norms, which the derivative needs, is zero in float32.
  norm = lambda v: jnp.sqrt(jnp.maximum(jnp.sum(v * v, -1), 1e-24))
  return jnp.sum(q_BTE * k_BTE, -1) / norm(q_BTE) / norm(k_BTE)
