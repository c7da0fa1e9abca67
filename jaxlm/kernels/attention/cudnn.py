"""cuDNN's fused attention through jax.nn.dot_product_attention, where it computes exactly the same."""

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention.reference import AttentionSpec, MaskInputs
from jaxlm.kernels.platform import target_platform


def supports(
  q, k, v, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec, spec=None
) -> str | None:
  """None, or the sentence that says why not. q, k, v: anything with shape and dtype."""
  if target_platform() != "gpu":
    return f"the trace is for {target_platform()}, cuDNN needs a GPU"
  if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
    return (
      f"dtypes are {q.dtype}, {k.dtype}, {v.dtype}; cuDNN wants one of bfloat16, float16 for all"
    )
  if biases or rule.softcap is not None or rule.softmax1:
    return "biases, softcap and softmax1 are not in cuDNN's kernel"
  if (
    mask_inputs.q_segment_ids_BT is not None
    or mask_inputs.kv_segment_ids_BS is not None
    or not rule.contiguous
  ):
    return "segment ids and explicit indices would need a stored (length, length) mask"
  if q.shape[1] != k.shape[1]:
    return f"{q.shape[1]} queries and {k.shape[1]} keys: only self-attention is covered"
  if rule.window is not None and not rule.causal:
    return "its window is causal"
  if q.shape[-1] != v.shape[-1] or q.shape[-1] % 8 or q.shape[-1] > 128:
    return f"head sizes {q.shape[-1]}, {v.shape[-1]}: must be equal, multiples of 8 and at most 128"
  return None


def attention(q_BTNH, k_BSKH, v_BSKH, rule: AttentionSpec):
  window = None if rule.window is None else (rule.window - 1, 0)
  return jax.nn.dot_product_attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    scale=rule.scale,
    is_causal=rule.causal,
    local_window_size=window,
    implementation="cudnn",
  )
