"""The delta rule, the definition: one token at a time.

Axes: B batch, T time, N heads, H key width, E value width.
"""

import jax
import jax.numpy as jnp


def delta_rule(q_BTNH, k_BTNH, v_BTNE, beta_BTN, log_decay_BTN, state_BNHE, ids_BT):
  """S <- exp(a_t) S; S_t = S + k_t (beta_t (v_t - S^T k_t))^T; o_t = S_t^T q_t; S starts again with
  every segment.
  """

  def step(carry, token):
    state, last_B = carry
    q, k, v, beta, a, id_B = token
    state = state * (id_B == last_B)[:, None, None, None] * jnp.exp(a)[..., None, None]
    u = beta[..., None] * (v - jnp.einsum("bnhe,bnh->bne", state, k))
    state = state + k[..., None] * u[:, :, None]
    return (state, id_B), jnp.einsum("bnh,bnhe->bne", q, state)

  by_time = jax.tree.map(
    lambda x: jnp.moveaxis(x, 1, 0), (q_BTNH, k_BTNH, v_BTNE, beta_BTN, log_decay_BTN, ids_BT)
  )
  (state_BNHE, _), o_TBNE = jax.lax.scan(step, (state_BNHE, ids_BT[:, 0]), by_time)
  return jnp.moveaxis(o_TBNE, 0, 1), state_BNHE
