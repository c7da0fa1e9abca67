"""Gated linear attention, the definition: one token at a time.

Axes: B batch, T time, N heads, H key width, E value width.
"""

import jax
import jax.numpy as jnp


def gla(q_BTNH, k_BTNH, v_BTNE, log_decay_BTNH, state_BNHE, ids_BT):
  """S_t = diag(exp a_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t; S starts again where the segment id
  changes.
  """

  def step(carry, token):
    state, last_B = carry
    q, k, v, a, id_B = token
    state = state * (id_B == last_B)[:, None, None, None]
    state = jnp.exp(a)[..., None] * state + k[..., None] * v[:, :, None]
    return (state, id_B), jnp.einsum("bnh,bnhe->bne", q, state)

  by_time = jax.tree.map(
    lambda x: jnp.moveaxis(x, 1, 0), (q_BTNH, k_BTNH, v_BTNE, log_decay_BTNH, ids_BT)
  )
  (state_BNHE, _), o_TBNE = jax.lax.scan(step, (state_BNHE, ids_BT[:, 0]), by_time)
  return jnp.moveaxis(o_TBNE, 0, 1), state_BNHE
