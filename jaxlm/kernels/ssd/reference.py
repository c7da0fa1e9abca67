"""The definition: one token after the other, float32."""

import jax
import jax.numpy as jnp


def ssd(x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, state_BNHE, reset_BT):
  """(y_BTNH, final state_BNHE), both float32."""
  if reset_BT is None:
    reset_BT = jnp.zeros(x_BTNH.shape[:2], bool)
  heads_per_group = x_BTNH.shape[2] // b_BTKE.shape[2]

  def f32(v):
    return jnp.moveaxis(v.astype(jnp.float32), 1, 0)

  def per_head(v):
    return jnp.repeat(f32(v), heads_per_group, axis=2)

  def step(s_BNHE, token):
    x_BNH, log_a_BN, dt_BN, b_BNE, c_BNE, reset_B = token
    s_BNHE = jnp.where(reset_B[:, None, None, None], 0, s_BNHE) * jnp.exp(log_a_BN)[..., None, None]
    s_BNHE = s_BNHE + (dt_BN[..., None] * x_BNH)[..., None] * b_BNE[:, :, None]
    return s_BNHE, jnp.einsum("bnhe,bne->bnh", s_BNHE, c_BNE)

  tokens = f32(x_BTNH), f32(log_a_BTN), f32(dt_BTN), per_head(b_BTKE), per_head(c_BTKE), reset_BT.T
  state_BNHE, y_TBNH = jax.lax.scan(step, state_BNHE.astype(jnp.float32), tokens)
  return jnp.moveaxis(y_TBNH, 0, 1), state_BNHE
