"""The delta rule, plain (DeltaNet) and gated: a linear recurrence that overwrites what its key
already holds.
"""

import jax.numpy as jnp

from jaxlm.kernels.choices import note
from jaxlm.kernels.delta_rule import blocks, pallas_tpu, reference, xla
from jaxlm.kernels.platform import target_device_kind

IMPLEMENTATIONS = ("reference", "xla", "pallas")


def delta_rule(
  q_BTNH,
  k_BTNH,
  v_BTNE,
  beta_BTN,
  log_decay_BTN=None,
  *,
  initial_state_BNHE=None,
  segment_ids_BT=None,
  scale=None,
  chunk=64,
  implementation=None,
  spec=None,
):
  """S <- e^{a_t} S; S_t = S + k_t (beta_t (v_t - S^T k_t))^T; o_t = scale S_t^T q_t. Returns
  (o_BTNE in v's dtype, S_T).

  q, k: (B, T, N, H), k of unit length or the recurrence may grow; v: (B, T, N, E); beta in [0, 1]
  (to 2 allowed). log_decay a <= 0, one per head and token; None: no decay, the plain rule. scale:
  default H^-0.5. The state is (B, N, H, E), float32 (or float64), zeros at the start unless given;
  inside, all is float32 or better.
  segment_ids_BT: int32; S starts again from zeros where the id changes. The initial state belongs
  to the first
    token's segment, the final one to the last token's.
  chunk: tokens that are computed together; "pallas" has its own (blocks.py).
  Differentiable. The gradient keeps one state per chunk and recomputes the rest.
  implementation: None, "reference", "xla", "pallas" (TPU kernels, whose products are of v's dtype,
  and of float32 where the triangle is inverted). None takes "pallas" where it is supported and
  blocks.py says that it is faster.
  spec: PartitionSpec of q under the context mesh (batch, None, heads, None), for "pallas", which the
  compiler does not partition.
  """
  if implementation not in (None, *IMPLEMENTATIONS):
    raise NotImplementedError(
      f"delta_rule has no implementation {implementation!r}; it has {', '.join(IMPLEMENTATIONS)}"
    )
  B, T, N, H = q_BTNH.shape
  E = v_BTNE.shape[-1]
  log_decay_BTN = jnp.zeros_like(beta_BTN) if log_decay_BTN is None else log_decay_BTN
  if (
    k_BTNH.shape != q_BTNH.shape
    or v_BTNE.shape != (B, T, N, E)
    or not (beta_BTN.shape == log_decay_BTN.shape == (B, T, N))
  ):
    raise ValueError(
      f"q {q_BTNH.shape}, k {k_BTNH.shape}, v {v_BTNE.shape}, beta {beta_BTN.shape}, log_decay "
      f"{log_decay_BTN.shape}: want twice (B, T, N, H), (B, T, N, E) and twice (B, T, N)"
    )
  if chunk < 1:
    raise ValueError(f"chunk {chunk} of the delta rule is not positive; 64 is usual")
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
    raise NotImplementedError(f"delta_rule implementation 'pallas': {reason()}")
  note(
    "delta_rule",
    name,
    {"q": q_BTNH, "v": v_BTNE},
    named=implementation is not None,
    refused=lambda: {"pallas": reason()},
  )
  if name == "pallas":
    arrays = q_BTNH, k_BTNH, v_BTNE, beta_BTN, log_decay_BTN, state, segment_ids_BT, scale
    return pallas_tpu.delta_rule(*arrays, blocks=tiles, spec=spec)
  ids_BT = jnp.ones((B, T), jnp.int32) if segment_ids_BT is None else segment_ids_BT

  def cast(x):
    return x.astype(acc)

  args = (
    cast(q_BTNH) * scale,
    cast(k_BTNH),
    cast(v_BTNE),
    cast(beta_BTN),
    cast(log_decay_BTN),
    state,
    ids_BT,
  )
  o_BTNE, state = (
    reference.delta_rule(*args) if name == "reference" else xla.delta_rule(*args, min(chunk, T))
  )
  return o_BTNE.astype(v_BTNE.dtype), state
