"""Gated linear attention (arXiv 2312.06635): a linear recurrence with a decay per key channel."""

import jax.numpy as jnp

from jaxlm.kernels.choices import note
from jaxlm.kernels.gla import blocks, pallas_tpu, reference, xla
from jaxlm.kernels.platform import target_device_kind

IMPLEMENTATIONS = ("reference", "xla", "pallas")


def gla(
  q_BTNH,
  k_BTNH,
  v_BTNE,
  log_decay_BTNH,
  *,
  initial_state_BNHE=None,
  segment_ids_BT=None,
  scale=None,
  chunk=64,
  implementation=None,
  spec=None,
):
  """S_t = diag(exp a_t) S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t. Returns (o_BTNE in v's dtype,
  S_T).

  q, k: (B, T, N, H); v: (B, T, N, E); log_decay a <= 0. scale: default H^-0.5. The state is (B, N,
  H, E), float32 (or float64), and zeros at the start unless given. Inside, everything is float32 or
  better.
  segment_ids_BT: int32; S starts again from zeros where the id changes. The initial state belongs
  to the first
    token's segment, the final one to the last token's.
  chunk: tokens that are computed together; a multiple of 16, or the sequence is one chunk shorter
  than that; "pallas" has its own (blocks.py). Differentiable. The gradient keeps one state per chunk
  and recomputes the rest.
  implementation: None, "reference", "xla", "pallas" (TPU kernels, whose products are of v's dtype).
  None takes "pallas" where it is supported and blocks.py says that it is faster.
  spec: PartitionSpec of q under the context mesh (batch, None, heads, None), for "pallas", which the
  compiler does not partition.
  """
  if implementation not in (None, *IMPLEMENTATIONS):
    raise NotImplementedError(
      f"gla has no implementation {implementation!r}; it has {', '.join(IMPLEMENTATIONS)}"
    )
  B, T, N, H = q_BTNH.shape
  E = v_BTNE.shape[-1]
  if (
    k_BTNH.shape != q_BTNH.shape
    or log_decay_BTNH.shape != q_BTNH.shape
    or v_BTNE.shape != (B, T, N, E)
  ):
    raise ValueError(
      f"q {q_BTNH.shape}, k {k_BTNH.shape}, log_decay {log_decay_BTNH.shape}, v {v_BTNE.shape}: want three "
      "times (B, T, N, H) and (B, T, N, E)"
    )
  if chunk % xla.BLOCK:
    raise ValueError(
      f"chunk {chunk} of gla is not a multiple of {xla.BLOCK}; use {-(-chunk // xla.BLOCK) * xla.BLOCK}"
    )
  acc = jnp.promote_types(q_BTNH.dtype, jnp.float32)
  state = (
    jnp.zeros((B, N, H, E), acc) if initial_state_BNHE is None else initial_state_BNHE.astype(acc)
  )
  if state.shape != (B, N, H, E):
    raise ValueError(f"initial state {state.shape}, wanted {(B, N, H, E)}")
  scale, kind = H**-0.5 if scale is None else scale, target_device_kind()
  tiles = blocks.pallas_blocks(kind)

  def reason():
    return pallas_tpu.supports(q_BTNH, v_BTNE, kind, tiles, spec)

  name = implementation
  if name is None:
    name = "pallas" if blocks.prefers_pallas(kind) and reason() is None else "xla"
  if name == "pallas" and reason() is not None:
    raise NotImplementedError(f"gla implementation 'pallas': {reason()}")
  note(
    "gla",
    name,
    {"q": q_BTNH, "v": v_BTNE},
    named=implementation is not None,
    refused=lambda: {"pallas": reason()},
  )
  if name == "pallas":
    arrays = q_BTNH, k_BTNH, v_BTNE, log_decay_BTNH, state, segment_ids_BT, scale
    return pallas_tpu.gla(*arrays, blocks=tiles, spec=spec)
  ids_BT = jnp.ones((B, T), jnp.int32) if segment_ids_BT is None else segment_ids_BT
  q_BTNH = q_BTNH.astype(acc) * scale
  args = (q_BTNH, k_BTNH.astype(acc), v_BTNE.astype(acc), log_decay_BTNH.astype(acc), state, ids_BT)
  if name == "reference":
    o_BTNE, state = reference.gla(*args)
  else:
    o_BTNE, state = xla.gla(
      *args, chunk if T >= chunk else -(-T // xla.BLOCK) * xla.BLOCK if T > xla.BLOCK else T
    )
  return o_BTNE.astype(v_BTNE.dtype), state
