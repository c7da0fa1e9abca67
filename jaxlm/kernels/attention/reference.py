"""The definition of attention: all scores at once, differentiated by autodiff.

Axes: B batch, N query heads, K kv heads, G = N / K, T queries, S keys, H head_dim of q and k, F of
v. Inside this package heads come before time: q_BNTH, k_BKSH, v_BKSF.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention.bias import Block, pytree

MASKED = -1e30  # finite, so that MASKED - MASKED is 0 and not NaN
LOWEST_MAX = (
  -1e29
)  # a row's maximum is at least this, so that exp(MASKED - maximum) is 0 in an empty row


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
  """The static part of an attention: who sees whom, and what becomes of the logits."""

  scale: float
  causal: bool = True
  window: int | None = None
  softcap: float | None = None
  softmax1: bool = False
  contiguous: bool = True  # indices are 0, 1, 2 ... in queries and keys


@pytree(data=["i_BT", "j_BS", "q_segment_ids_BT", "kv_segment_ids_BS", "structure"])
class MaskInputs:
  """Indices and segments of queries and keys; leading axes B or 1. Segments may be None.

  structure: None, or a mask of `structure.py`.
  """

  i_BT: jax.Array
  j_BS: jax.Array
  q_segment_ids_BT: jax.Array | None
  kv_segment_ids_BS: jax.Array | None
  structure: Any = None

  def seen(self, rule: AttentionSpec):
    """Bool, broadcastable to (B, 1, T, S): which pairs may attend."""
    i, j = self.i_BT[:, None, :, None], self.j_BS[:, None, None, :]
    seen = j <= i if rule.causal else jnp.full((1, 1, i.shape[2], j.shape[3]), True)
    if rule.window is not None:
      seen &= i - j < rule.window
      if not rule.causal:
        seen &= j - i < rule.window
    if not rule.contiguous:
      seen &= j >= 0  # empty slots of a ring buffer
    if self.kv_segment_ids_BS is not None:
      key = self.kv_segment_ids_BS[:, None, None, :]
      seen &= key != 0
      if self.q_segment_ids_BT is not None:
        seen &= self.q_segment_ids_BT[:, None, :, None] == key
    if self.structure is not None:
      seen &= self.structure.seen(i, j)
    return seen


def scores(q_BNTH, k_BKSH, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec):
  """s = softcap(scale q.k) + biases, MASKED where the pair may not attend. (B, N, T, S) float32."""
  return from_products(products(q_BNTH, k_BKSH.swapaxes(2, 3)), q_BNTH, mask_inputs, biases, rule)


def products(q_BNTH, k_BKHS):
  """q.k of every pair, (B, N, T, S) float32."""
  B, N, T, H = q_BNTH.shape
  K, S = k_BKHS.shape[1], k_BKHS.shape[3]
  q_BKGTH = q_BNTH.reshape(B, K, N // K, T, H)
  s_BKGTS = jnp.einsum("bkgth,bkhs->bkgts", q_BKGTH, k_BKHS, preferred_element_type=jnp.float32)
  return s_BKGTS.reshape(B, N, T, S)


def from_products(s_BNTS, q_BNTH, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec):
  """The scores, given q.k. q: for biases that read it."""
  s_BNTS = s_BNTS * rule.scale
  if rule.softcap is not None:
    s_BNTS = rule.softcap * jnp.tanh(s_BNTS / rule.softcap)
  seen = mask_inputs.seen(rule)
  block = Block(q_BNTH, mask_inputs.i_BT, mask_inputs.j_BS, seen, rule.contiguous)
  for bias in biases:
    s_BNTS = bias.add(s_BNTS, block)
  return jnp.where(seen, s_BNTS, MASKED)


def softmax(s_BNTS, softmax1: bool):
  """exp(s - m) with m >= LOWEST_MAX (>= 0 for softmax1, whose extra logit is 0), its row sums, and
  m.
  """
  m_BNT1 = jnp.maximum(jnp.max(s_BNTS, -1, keepdims=True), 0.0 if softmax1 else LOWEST_MAX)
  m_BNT1 = jax.lax.stop_gradient(m_BNT1)
  p_BNTS = jnp.exp(s_BNTS - m_BNT1)
  l_BNT1 = jnp.sum(p_BNTS, -1, keepdims=True)
  return p_BNTS, l_BNT1 + jnp.exp(-m_BNT1) if softmax1 else l_BNT1, m_BNT1


def weighted_sum(p_BNTS, v_BKSF):
  """sum_s p v with p in v's dtype and float32 accumulation. (B, N, T, F) float32."""
  B, N, T, S = p_BNTS.shape
  K = v_BKSF.shape[1]
  p_BKGTS = p_BNTS.astype(v_BKSF.dtype).reshape(B, K, N // K, T, S)
  o = jnp.einsum("bkgts,bksf->bkgtf", p_BKGTS, v_BKSF, preferred_element_type=jnp.float32)
  return o.reshape(B, N, T, v_BKSF.shape[-1])


def attention(q_BTNH, k_BSKH, v_BSKF, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec):
  """o = softmax(s) v, rows without keys 0. (B, T, N, F) in q's dtype."""
  s_BNTS = scores(q_BTNH.swapaxes(1, 2), k_BSKH.swapaxes(1, 2), mask_inputs, biases, rule)
  p_BNTS, l_BNT1, _ = softmax(s_BNTS, rule.softmax1)
  o_BNTF = weighted_sum(p_BNTS, v_BSKF.swapaxes(1, 2)) / jnp.where(l_BNT1 == 0, 1.0, l_BNT1)
  return o_BNTF.swapaxes(1, 2).astype(q_BTNH.dtype)
