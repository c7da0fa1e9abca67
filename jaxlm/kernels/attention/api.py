"""The public attention: one call for every mask, bias and platform.

Axes: B batch, T queries, S keys, N query heads, K kv heads, H head_dim of q and k, F head_dim of v.
"""

import jax.numpy as jnp

from jaxlm.kernels.attention import blocks, cudnn, pallas_gpu, pallas_tpu, reference, splash, xla
from jaxlm.kernels.attention.reference import AttentionSpec, MaskInputs
from jaxlm.kernels.choices import note

_supports = {
  "reference": lambda *args: None,
  "xla": lambda *args: None,
  "cudnn": cudnn.supports,
  "splash": splash.supports,
  "pallas": pallas_tpu.supports,
  "pallas_gpu": pallas_gpu.supports,
}


def best(q, k, v, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec, spec=None) -> str:
  """Ours where its estimate is better, else the platform's fused kernel where it covers the case, else
  dense when small, else by blocks.
  """
  pays = blocks.pallas_pays(q.shape[1], k.shape[1], biases)
  fused_forms = (*(("pallas",) if pays else ()), "splash", "cudnn")
  for fused in fused_forms if mask_inputs is None or mask_inputs.structure is None else ():
    if _supports[fused](q, k, v, mask_inputs, biases, rule, spec) is None:
      return fused
  return "reference" if q.shape[1] * k.shape[1] <= blocks.DENSE_SCORES else "xla"


def attention(
  q_BTNH,
  k_BSKH,
  v_BSKF,
  *,
  causal: bool = True,
  window: int | None = None,
  q_segment_ids_BT=None,
  kv_segment_ids_BS=None,
  q_index_BT=None,
  kv_index_BS=None,
  bias=None,
  softcap: float | None = None,
  scale: float | None = None,
  softmax1: bool = False,
  structure=None,
  implementation: str | None = None,
  spec=None,
):
  """o_i = sum_j p_ij v_j,  p_ij = exp(s_ij) / (softmax1 + sum_j exp(s_ij)),  s_ij = softcap(scale
  q_i.k_j) + b_ij.

  q_BTNH: (B, T, N, H) queries; k_BSKH: (B, S, K, H), K divides N, query head n reads kv head n //
  (N / K);
  v_BSKF: (B, S, K, F), F may differ from H. Returns (B, T, N, F) in q's dtype. Softmax in float32;
  a query that sees no key gives 0. Differentiable in q, k, v and the bias's parameters.

  Key j is seen by query i if all hold: j <= i (causal); i - j < window (not causal: |i - j| <
  window); equal segment ids; key segment not 0 (padding).
  q_index_BT, kv_index_BS: int32 (B or 1, length), the i and j above and of the biases; default 0,
  1, 2 ...
    Decoding passes absolute indices; an empty slot of a ring buffer has index -1 and is never seen.
  q_segment_ids_BT, kv_segment_ids_BS: int32. With the queries' alone (T = S) the keys have the
  same; with the
    keys' alone every query sees every key that is not padding.
  bias: None, one of LinearBias, KeyBias, BucketBias, CoPE, or a tuple of them (added in that
  order).
  scale: default 1 / sqrt(H). softcap: c tanh(s / c). softmax1: one extra logit 0 in the
  denominator.
  structure: None, or TreeMask, SetMask, BlockDiffusionMask: a pair must be seen by it too.
  implementation: None (best for the platform), "reference", "xla", "cudnn", "splash", "pallas"
  (ours, for TPUs: with
    LinearBias, KeyBias, BucketBias and softmax1), "pallas_gpu" (the same for Hopper GPUs; never run
    on one, hence never the best). A named one that does not cover the case raises
    NotImplementedError.
  spec: PartitionSpec of q under the context mesh (batch, None, heads, None), used by splash, pallas
  and pallas_gpu, which are not
    partitioned by the compiler.
  """
  mask_inputs, biases, rule = prepared(
    q_BTNH,
    k_BSKH,
    v_BSKF.shape,
    causal,
    window,
    q_segment_ids_BT,
    kv_segment_ids_BS,
    q_index_BT,
    kv_index_BS,
    bias,
    softcap,
    scale,
    softmax1,
    structure,
  )
  impl = implementation or best(q_BTNH, k_BSKH, v_BSKF, mask_inputs, biases, rule, spec)
  if impl not in _supports:
    raise ValueError(
      f"implementation {implementation!r} of attention; known: {', '.join(_supports)}"
    )
  reason = _supports[impl](q_BTNH, k_BSKH, v_BSKF, mask_inputs, biases, rule, spec)
  if structure is not None and impl not in ("reference", "xla"):
    reason = "masks with a structure are computed by 'reference' and 'xla' only"
  if reason is not None:
    raise NotImplementedError(f"attention implementation {impl!r}: {reason}")
  note(
    "attention",
    impl,
    {"q": q_BTNH, "k": k_BSKH},
    named=implementation is not None,
    refused=lambda: {
      fused: _supports[fused](q_BTNH, k_BSKH, v_BSKF, mask_inputs, biases, rule, spec)
      for fused in ("splash", "cudnn", "pallas", "pallas_gpu")
    },
  )
  if impl == "splash":
    return splash.attention(q_BTNH, k_BSKH, v_BSKF, q_segment_ids_BT, rule, spec)
  if impl == "cudnn":
    return cudnn.attention(q_BTNH, k_BSKH, v_BSKF, rule)
  if impl == "pallas_gpu":
    return pallas_gpu.attention(q_BTNH, k_BSKH, v_BSKF, mask_inputs, biases, rule, spec)
  if impl == "pallas":
    return pallas_tpu.attention(q_BTNH, k_BSKH, v_BSKF, mask_inputs, biases, rule, spec)
  return (reference if impl == "reference" else xla).attention(
    q_BTNH, k_BSKH, v_BSKF, mask_inputs, biases, rule
  )


def attention_weights(
  q_BTNH,
  k_BSKH,
  *,
  causal: bool = True,
  window: int | None = None,
  q_segment_ids_BT=None,
  kv_segment_ids_BS=None,
  q_index_BT=None,
  kv_index_BS=None,
  bias=None,
  softcap: float | None = None,
  scale: float | None = None,
  softmax1: bool = False,
  structure=None,
):
  """p_ij of `attention`, whole: float32 (B, N, T, S). Rows without keys are 0; rows of softmax1 sum
  to less than 1.

  Arguments as of `attention`. For looking at models: memory grows with T S.
  """
  mask_inputs, biases, rule = prepared(
    q_BTNH,
    k_BSKH,
    k_BSKH.shape,
    causal,
    window,
    q_segment_ids_BT,
    kv_segment_ids_BS,
    q_index_BT,
    kv_index_BS,
    bias,
    softcap,
    scale,
    softmax1,
    structure,
  )
  s_BNTS = reference.scores(q_BTNH.swapaxes(1, 2), k_BSKH.swapaxes(1, 2), mask_inputs, biases, rule)
  p_BNTS, l_BNT1, _ = reference.softmax(s_BNTS, rule.softmax1)
  return p_BNTS / jnp.where(l_BNT1 == 0, 1.0, l_BNT1)


def prepared(
  q_BTNH,
  k_BSKH,
  v_shape,
  causal,
  window,
  q_segment_ids_BT,
  kv_segment_ids_BS,
  q_index_BT,
  kv_index_BS,
  bias,
  softcap,
  scale,
  softmax1,
  structure,
):
  """(mask_inputs, biases, rule) of checked arguments."""
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  if k_BSKH.shape != (B, S, K, H) or v_shape[:3] != (B, S, K) or N % K:
    raise ValueError(
      f"q {q_BTNH.shape}, k {k_BSKH.shape}, v {v_shape}: want (B, T, N, H), (B, S, K, H), "
      "(B, S, K, F) with K dividing N"
    )
  if window is not None and window < 1:
    raise ValueError(f"window {window}: a query sees itself at least; use window >= 1 or None")
  if q_segment_ids_BT is not None and kv_segment_ids_BS is None:
    if T != S:
      raise ValueError(
        f"q_segment_ids for {T} queries and none for {S} keys; pass kv_segment_ids_BS"
      )
    kv_segment_ids_BS = q_segment_ids_BT
  contiguous = q_index_BT is None and kv_index_BS is None

  def count(index, length):
    return jnp.arange(length, dtype=jnp.int32)[None] if index is None else index

  mask_inputs = MaskInputs(
    count(q_index_BT, T), count(kv_index_BS, S), q_segment_ids_BT, kv_segment_ids_BS, structure
  )
  rule = AttentionSpec(
    scale=H**-0.5 if scale is None else float(scale),
    causal=causal,
    window=window,
    softcap=softcap,
    softmax1=softmax1,
    contiguous=contiguous,
  )
  biases = () if bias is None else tuple(bias) if isinstance(bias, (tuple, list)) else (bias,)
  return mask_inputs, biases, rule
