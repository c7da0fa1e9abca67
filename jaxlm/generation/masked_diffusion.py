"""Sampling from masked diffusion: ancestral as released, and by confidence.

Axes: B batch, T position, V vocab. docs/specs/ilm.md, section 6.2.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError
from jaxlm.objectives.masked_diffusion import K, total_noise


def step_size(max_steps: int) -> float:
  return (1 - 1e-5) / (max_steps + 1)


def ancestral(logits_BTV, tokens_BT, t_B, dt: float, mask: int, u_BTV):
  """x_s ~ q(x_s | x_t): token v with p_v (m_t - m_s), mask with m_s, m = k t, s = t - dt; known
  tokens are copied.

  u_BTV: uniform noise.
  """
  m_t, m_s = (K * x[:, None, None] for x in (t_B, t_B - dt))
  q_BTV = jax.nn.softmax(logits_BTV.astype(jnp.float32)) * (m_t - m_s)
  is_mask_11V = (jnp.arange(logits_BTV.shape[-1]) == mask)[None, None]
  q_BTV = jnp.where(is_mask_11V, m_s, q_BTV) / (1e-10 - jnp.log(u_BTV + 1e-10))
  return jnp.where(tokens_BT == mask, jnp.argmax(q_BTV, axis=-1).astype(tokens_BT.dtype), tokens_BT)


def finish(logits_BTV, tokens_BT, mask: int):
  """The most probable token at every masked position (the mask itself, if the network says so: the
  release's last step).
  """
  return jnp.where(
    tokens_BT == mask, jnp.argmax(logits_BTV, axis=-1).astype(tokens_BT.dtype), tokens_BT
  )


@functools.partial(jax.jit, static_argnames=("config", "mask", "max_steps", "order"))
def sample(
  params,
  tokens_BT,
  keys_BT,
  key,
  *,
  config,
  mask: int,
  max_steps: int,
  order: Literal["ancestral", "confidence"] = "ancestral",
):
  """Fills the positions that hold `mask`; (B, T) int32. keys_BT: bool, positions that attention
  sees; None = all.

  "ancestral": max_steps - 1 random steps from t = 1, then the most probable tokens, at time 1 - dt
  as in the release. "confidence": step i reveals the most certain of the masked positions, so that
  (1 - (i + 1) / max_steps) of them stay.
  """
  if max_steps < 1:
    raise ConfigError(f"max_steps = {max_steps}: wanted at least one forward pass")
  B = tokens_BT.shape[0]
  dt, model = step_size(max_steps), config.build()

  def logits(x_BT, t_B):
    return model.apply({"params": params}, x_BT, total_noise(t_B), keys_BT)

  def ancestral_step(i, x_BT):
    t_B = jnp.full(B, 1.0) - i * dt
    u_BTV = jax.random.uniform(jax.random.fold_in(key, i), (*x_BT.shape, config.vocab_size))
    return ancestral(logits(x_BT, t_B), x_BT, t_B, dt, mask, u_BTV)

  count_B = jnp.sum(tokens_BT == mask, axis=1)

  def confident_step(i, x_BT):
    masked_BT = x_BT == mask
    left_B = jnp.floor(count_B * (1 - (i + 1) / max_steps)).astype(jnp.int32)
    t_B = jnp.full(B, 1 - i / max_steps)
    out_BTV = logits(x_BT, t_B).at[..., mask].set(-jnp.inf)
    sure_BT = jnp.where(masked_BT, jnp.max(jax.nn.log_softmax(out_BTV), axis=-1), -jnp.inf)
    rank_BT = jnp.argsort(jnp.argsort(-sure_BT, axis=1), axis=1)
    shown_BT = masked_BT & (rank_BT < jnp.sum(masked_BT, axis=1, keepdims=True) - left_B[:, None])
    return jnp.where(shown_BT, jnp.argmax(out_BTV, axis=-1).astype(x_BT.dtype), x_BT)

  if order == "confidence":
    return jax.lax.fori_loop(0, max_steps, confident_step, tokens_BT)
  x_BT = jax.lax.fori_loop(0, max_steps - 1, ancestral_step, tokens_BT)
  return finish(logits(x_BT, jnp.full(B, 1 - dt)), x_BT, mask)
