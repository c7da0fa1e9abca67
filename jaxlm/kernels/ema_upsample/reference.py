"""The definition: one chunk after the other, float32."""

import jax
import jax.numpy as jnp


def ema_upsample(x_BCD, p_BC, decay_BC, initial_BD, rank_BT):
  """(y_BTD, last_BD), float32."""

  def step(z_BD, chunk):
    x_BD, p_B, decay_B = chunk
    z_BD = p_B[:, None] * x_BD + decay_B[:, None] * z_BD
    return z_BD, z_BD

  chunks = jnp.moveaxis(x_BCD.astype(jnp.float32), 1, 0), p_BC.T, decay_BC.T
  last_BD, z_CBD = jax.lax.scan(step, initial_BD, chunks)
  z_BCD = jnp.concatenate([initial_BD[:, None], jnp.moveaxis(z_CBD, 0, 1)], axis=1)
  return z_BCD[jnp.arange(x_BCD.shape[0])[:, None], rank_BT + 1], last_BD
