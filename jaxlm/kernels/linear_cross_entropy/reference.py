"""The definition: all logits at once, differentiated by autodiff.

Axes: B batch, T time, D d_model, V vocabulary.
"""

import jax
import jax.numpy as jnp


def logits(h_BTD, w_VD, bias_V, softcap: float | None):
  """softcap(h w^T + bias), float32 (B, T, V); products in the arguments' dtype with float32 sums."""
  a_BTV = jnp.einsum("btd,vd->btv", h_BTD, w_VD, preferred_element_type=jnp.float32)
  if bias_V is not None:
    a_BTV = a_BTV + bias_V.astype(jnp.float32)[None, None]
  return a_BTV if softcap is None else softcap * jnp.tanh(a_BTV / softcap)


def is_target(targets_BT, vocab_size: int):
  """Bool (B, T, V), fused into its consumer; a target outside the vocabulary gives no True."""
  return jax.lax.broadcasted_iota(jnp.int32, (1, 1, vocab_size), 2) == targets_BT[:, :, None]


def linear_cross_entropy(h_BTD, w_VD, bias_V, targets_BT, *, softcap):
  """(log_prob_BT or None, log_z_BT)."""
  a_BTV = logits(h_BTD, w_VD, bias_V, softcap)
  log_z_BT = jax.nn.logsumexp(a_BTV, axis=-1)
  if targets_BT is None:
    return None, log_z_BT
  # Not a gather: with the vocabulary sharded this is a local sum and one small reduction.
  target_BT = jnp.sum(jnp.where(is_target(targets_BT, w_VD.shape[0]), a_BTV, 0.0), axis=-1)
  return target_BT - log_z_BT, log_z_BT
