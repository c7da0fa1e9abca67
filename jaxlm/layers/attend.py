"""Attention with a tap on its weights.

Axes: B batch, T queries, S keys, N heads, K kv heads, H head_dim.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.kernels.attention import KeyBias, attention, attention_weights
from jaxlm.layers.attention_statistics import attention_statistics
from jaxlm.layers.taps import STATISTICS, wants_attention


def attend(module: nn.Module, q_BTNH, k_BSKH, v_BSKH, *, implementation=None, **rule):
  """`kernels.attention.attention` of these arguments, (B, T, N, H) in v's dtype.

  The weights p, float32 (B, N, T, S), are computed whole only where they are asked for: recorded as
  `weights` where the collection `attention` is mutable, changed where `edits` holds an edit of
  them. The output is then the sum of v with the changed p. `attention_statistics` records sums by
  column and row (of the unchanged p), block by block. An edit of `key_bias`, float32 (B, S, N), is
  added to the scores of each key.
  """
  rule = with_key_bias(module, q_BTNH, k_BSKH, rule)
  if module.is_mutable_collection(STATISTICS) and not module.is_initializing():
    for name, x in attention_statistics(q_BTNH, k_BSKH, **rule)._asdict().items():
      module.sow(STATISTICS, f"attention_{name.split('_')[0]}", x)
  edited = module.has_variable("edits", "weights")
  if edited or wants_attention(module):
    p_BNTS = attention_weights(q_BTNH, k_BSKH, **rule)
    if edited:
      p_BNTS = module.get_variable("edits", "weights")(p_BNTS)
    module.sow("attention", "weights", p_BNTS)
    if edited:
      (B, N, T, S), K = p_BNTS.shape, k_BSKH.shape[2]
      p_BKGTS = p_BNTS.reshape(B, K, N // K, T, S)
      o_BTKGH = jnp.einsum("bkgts,bskh->btkgh", p_BKGTS, v_BSKH.astype(jnp.float32))
      return o_BTKGH.reshape(B, T, N, -1).astype(v_BSKH.dtype)
  spec = nn.logical_to_mesh_axes(("batch", None, "heads", None))
  return attention(q_BTNH, k_BSKH, v_BSKH, implementation=implementation, spec=spec, **rule)


def with_key_bias(module: nn.Module, q_BTNH, k_BSKH, rule: dict) -> dict:
  """The rule with the bias that an edit of the site `key_bias` asks for; without one, unchanged.

  The site is zero, so an edit with `add` or `value` sets it. The kernels add it by key.
  """
  shape = (*k_BSKH.shape[:2], q_BTNH.shape[2])
  if module.has_variable("edits", "key_bias"):
    bias_BSN = module.get_variable("edits", "key_bias")(jnp.zeros(shape, jnp.float32))
    bias = rule.get("bias")
    own = () if bias is None else tuple(bias) if isinstance(bias, (tuple, list)) else (bias,)
    rule = rule | {"bias": (*own, KeyBias(None, -bias_BSN))}
  if module.is_mutable_collection("taps") and not module.is_initializing():
    module.sow("taps", "key_bias", jnp.zeros(shape, jnp.float32))
  return rule
