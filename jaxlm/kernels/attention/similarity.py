"""Attention with a similarity other than exp, a normaliser other than the row's sum, and one key
that every query sees.

  o_i = (sum_j f(s_ij) v_j + f(s_i*) v_*) / Z_i,   s_ij = scale q_i.k_j + b_ij,  s_i* = scale q_i.k_*

f is one of SIMILARITIES, Z one of NORMALISERS (attention sinks, arXiv 2410.10781; ReLU attention,
arXiv 2410.13835; the Taylor kernel, arXiv 2510.11602). The key * (the slot) is a parameter: it has
no position, and no mask hides it.

Axes: B batch, T queries, S keys, N query heads, K kv heads, H head_dim of q and k, F of v, P
features of a kernel, Q queries of a block.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention import blocks
from jaxlm.kernels.attention.api import prepared
from jaxlm.kernels.attention.reference import (
  LOWEST_MAX,
  MASKED,
  AttentionSpec,
  MaskInputs,
  scores,
  weighted_sum,
)

SIMILARITIES = {
  "exp": jnp.exp,
  "sigmoid": jax.nn.sigmoid,
  "elu1": lambda s: jnp.where(s > 0, s + 1, jnp.exp(jnp.where(s > 0, 0.0, s))),
  "relu": jax.nn.relu,
  "identity": lambda s: s,
  "taylor": lambda s: 1 + s + s * s / 2,
}
#: log f. Rows divided by their sum are computed as the softmax of log f, because f(-104) is 0 in float32
#: and the sum would be 0.
LOGARITHMS = {
  "exp": lambda s: s,
  "sigmoid": jax.nn.log_sigmoid,
  "elu1": lambda s: jnp.where(s > 0, jnp.log1p(jnp.where(s > 0, s, 0.0)), s),
}
#: sum: of the similarities. none: 1. count: number of keys that the query sees, the slot included.
#: abs: max(|sum|, 1), for similarities that can be negative.
NORMALISERS = ("sum", "none", "count", "abs")
IMPLEMENTATIONS = ("reference", "xla", "recurrent")


@dataclasses.dataclass(frozen=True)
class Kind:
  """What replaces softmax. shift: added to every score, also the slot's."""

  similarity: str = "exp"
  normaliser: str = "sum"
  shift: float = 0.0

  def __post_init__(self):
    if self.similarity not in SIMILARITIES or self.normaliser not in NORMALISERS:
      raise ValueError(
        f"similarity {self.similarity!r} with normaliser {self.normaliser!r}; known: "
        f"{', '.join(SIMILARITIES)} with {', '.join(NORMALISERS)}"
      )
    if self.similarity == "exp" and self.normaliser != "sum":
      raise ValueError(
        f"similarity 'exp' with normaliser {self.normaliser!r} overflows; use normaliser 'sum', or "
        "similarity 'sigmoid', 'elu1', 'relu', 'identity' or 'taylor'"
      )


class Weights(NamedTuple):
  """p_BNTS: f(s_ij) / Z_i, float32. slot_BNT: f(s_i*) / Z_i, 0 where there is no slot."""

  p_BNTS: jax.Array
  slot_BNT: jax.Array


def similarity_attention(
  q_BTNH,
  k_BSKH,
  v_BSKF,
  *,
  kind: Kind,
  slot_k_KH=None,
  slot_v_KF=None,
  implementation: str | None = None,
  block: int | None = None,
  **rule,
):
  """The o of the module's equation, (B, T, N, F) in q's dtype. Differentiable.

  slot_k_KH: the key of the slot, (K, H); None: no slot. slot_v_KF: its value, (K, F); None: 0.
  rule: causal, window, segment ids, indices, bias, softcap, scale and structure, as in `attention`.
  implementation: None (best), "reference" (all scores at once), "xla" (blocks of `block` queries,
  O(T block) memory forward and backward), "recurrent" (a scan over time for similarities that are a
  product of features, without window, bias, segments or slot). A query that sees nothing gives 0.
  """
  mask_inputs, biases, rule = _checked(q_BTNH, k_BSKH, v_BSKF.shape, kind, rule)
  T, S = q_BTNH.shape[1], k_BSKH.shape[1]
  impl = implementation or ("reference" if T * S <= blocks.DENSE_SCORES else "xla")
  if impl not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation {impl!r} of similarity_attention; known: {', '.join(IMPLEMENTATIONS)}"
    )
  if impl == "recurrent":
    reason = _not_recurrent(kind, mask_inputs, biases, rule, slot_k_KH)
    if reason:
      raise NotImplementedError(f"similarity_attention implementation 'recurrent': {reason}")
    return recurrent(q_BTNH, k_BSKH, v_BSKF, kind, rule.scale)

  def of(q_BTNH, mask_inputs, biases):
    p_BNTS, slot_BNT = _weights(q_BTNH, k_BSKH, mask_inputs, biases, rule, kind, slot_k_KH)
    o_BNTF = weighted_sum(p_BNTS, v_BSKF.swapaxes(1, 2))
    if slot_k_KH is not None and slot_v_KF is not None:
      v_NF = _per_query_head(slot_v_KF, o_BNTF.shape[1]).astype(jnp.float32)
      o_BNTF += slot_BNT[..., None] * v_NF[None, :, None]
    return o_BNTF.swapaxes(1, 2).astype(q_BTNH.dtype)

  if impl == "reference":
    return of(q_BTNH, mask_inputs, biases)
  block = min(block or blocks.query_block(q_BTNH.shape[0] * q_BTNH.shape[2], T, S), T)
  return _by_blocks(of, q_BTNH, mask_inputs, biases, rule, block)


def similarity_weights(q_BTNH, k_BSKH, *, kind: Kind, slot_k_KH=None, **rule) -> Weights:
  """The weights of `similarity_attention`, whole: memory grows with T S."""
  mask_inputs, biases, rule = _checked(q_BTNH, k_BSKH, k_BSKH.shape, kind, rule)
  return Weights(*_weights(q_BTNH, k_BSKH, mask_inputs, biases, rule, kind, slot_k_KH))


def as_distribution(found: Weights) -> Weights:
  """|p| / sum |p|, the slot included: what is compared with the weights of softmax."""
  total_BNT1 = jnp.sum(jnp.abs(found.p_BNTS), -1, keepdims=True) + jnp.abs(
    found.slot_BNT[..., None]
  )
  total_BNT1 = jnp.where(total_BNT1 == 0, 1.0, total_BNT1)
  return Weights(jnp.abs(found.p_BNTS) / total_BNT1, jnp.abs(found.slot_BNT) / total_BNT1[..., 0])


def features(x, similarity: str):
  """phi with phi(q).phi(k) = f(q.k), along the last axis, float32. x: q or k times sqrt(scale)."""
  x = x.astype(jnp.float32)
  if similarity == "identity":
    return x
  if similarity == "taylor":
    squares = jnp.einsum("...h,...g->...hg", x, x) / 2**0.5
    squares = squares.reshape(*x.shape[:-1], -1)
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x, squares], axis=-1)
  raise NotImplementedError(f"similarity {similarity!r} is no product of finitely many features")


def recurrent(q_BTNH, k_BSKH, v_BSKF, kind: Kind, scale: float):
  """Causal attention in time linear in T: the state is sum_j phi(k_j) [v_j, 1], (B, K, P, F + 1)."""
  (B, T, N, _), K = q_BTNH.shape, k_BSKH.shape[2]
  q_TBKGP = jnp.moveaxis(
    features(q_BTNH * scale**0.5, kind.similarity).reshape(B, T, K, N // K, -1), 1, 0
  )
  k_TBKP = jnp.moveaxis(features(k_BSKH * scale**0.5, kind.similarity), 1, 0)
  v_TBKF = jnp.moveaxis(v_BSKF.astype(jnp.float32), 1, 0)
  v_TBKF = jnp.concatenate([v_TBKF, jnp.ones_like(v_TBKF[..., :1])], axis=-1)

  def step(state_BKPF, now):
    q_BKGP, k_BKP, v_BKF = now
    state_BKPF = state_BKPF + k_BKP[..., :, None] * v_BKF[..., None, :]
    return state_BKPF, jnp.einsum("bkgp,bkpf->bkgf", q_BKGP, state_BKPF)

  start = jnp.zeros((B, K, k_TBKP.shape[-1], v_TBKF.shape[-1]), jnp.float32)
  _, o_TBKGF = jax.lax.scan(step, start, (q_TBKGP, k_TBKP, v_TBKF))
  o_BTNF = jnp.moveaxis(o_TBKGF, 0, 1).reshape(B, T, N, -1)
  count_T = jnp.arange(1.0, T + 1)[None, :, None, None]
  z = {
    "sum": lambda: o_BTNF[..., -1:],
    "none": lambda: 1.0,
    "count": lambda: count_T,
    "abs": lambda: jnp.maximum(jnp.abs(o_BTNF[..., -1:]), 1.0),
  }[kind.normaliser]()
  return (o_BTNF[..., :-1] / z).astype(q_BTNH.dtype)


def _checked(q_BTNH, k_BSKH, v_shape, kind, rule):
  given = dict(
    causal=True,
    window=None,
    q_segment_ids_BT=None,
    kv_segment_ids_BS=None,
    q_index_BT=None,
    kv_index_BS=None,
    bias=None,
    softcap=None,
    scale=None,
    softmax1=False,
    structure=None,
  )
  unknown = set(rule) - set(given)
  if unknown:
    raise TypeError(f"similarity_attention has no argument {sorted(unknown)[0]!r}")
  given |= rule
  if given["softmax1"] and kind != Kind():
    raise ValueError("softmax1 belongs to similarity 'exp' with normaliser 'sum'")
  return prepared(q_BTNH, k_BSKH, v_shape, *given.values())


def _not_recurrent(kind, mask_inputs, biases, rule, slot_k_KH) -> str | None:
  if kind.similarity not in ("identity", "taylor"):
    return f"similarity {kind.similarity!r} is no product of finitely many features"
  if not rule.causal or rule.window is not None or not rule.contiguous or biases or rule.softcap:
    return "it is causal, without window, indices, bias and softcap"
  if mask_inputs.kv_segment_ids_BS is not None or slot_k_KH is not None or kind.shift:
    return "it has no segments, no slot and no shift"
  if mask_inputs.structure is not None:
    return "it has no mask of blocks"
  return None


def _per_query_head(x_KH, num_heads: int):
  return jnp.repeat(x_KH, num_heads // x_KH.shape[0], axis=0)


def _weights(
  q_BTNH, k_BSKH, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec, kind: Kind, slot_k_KH
):
  q_BNTH = q_BTNH.swapaxes(1, 2)
  s_BNTS = scores(q_BNTH, k_BSKH.swapaxes(1, 2), mask_inputs, biases, rule)
  seen_BNTS = s_BNTS > 0.5 * MASKED
  s_BNTS = jnp.where(seen_BNTS, s_BNTS + kind.shift, 0.0)
  slot_BNT = None
  if slot_k_KH is not None:
    k_NH = _per_query_head(slot_k_KH, q_BNTH.shape[1])
    slot_BNT = rule.scale * jnp.einsum(
      "bnth,nh->bnt", q_BNTH, k_NH, preferred_element_type=jnp.float32
    )
    if rule.softcap is not None:
      slot_BNT = rule.softcap * jnp.tanh(slot_BNT / rule.softcap)
    slot_BNT += kind.shift
  if kind.normaliser == "sum" and kind.similarity in LOGARITHMS:
    log_f = LOGARITHMS[kind.similarity]
    s_BNTS, slot_BNT = log_f(s_BNTS), None if slot_BNT is None else log_f(slot_BNT)
    m_BNT = jnp.max(jnp.where(seen_BNTS, s_BNTS, MASKED), -1)
    m_BNT = jnp.maximum(m_BNT, 0.0 if rule.softmax1 else LOWEST_MAX)
    m_BNT = jax.lax.stop_gradient(m_BNT if slot_BNT is None else jnp.maximum(m_BNT, slot_BNT))
    f_BNTS = jnp.where(seen_BNTS, jnp.exp(s_BNTS - m_BNT[..., None]), 0.0)
    f_BNT = jnp.zeros_like(m_BNT) if slot_BNT is None else jnp.exp(slot_BNT - m_BNT)
    z_BNT = jnp.sum(f_BNTS, -1) + f_BNT + (jnp.exp(-m_BNT) if rule.softmax1 else 0.0)
  else:
    f = SIMILARITIES[kind.similarity]
    f_BNTS = jnp.where(seen_BNTS, f(s_BNTS), 0.0)
    f_BNT = jnp.zeros_like(f_BNTS[..., 0]) if slot_BNT is None else f(slot_BNT)
    total_BNT = jnp.sum(f_BNTS, -1) + f_BNT
    if kind.normaliser == "sum":
      z_BNT = total_BNT
    elif kind.normaliser == "none":
      z_BNT = jnp.ones_like(total_BNT)
    elif kind.normaliser == "abs":
      z_BNT = jnp.maximum(jnp.abs(total_BNT), 1.0)
    else:
      z_BNT = jnp.sum(seen_BNTS, -1).astype(jnp.float32) + (slot_BNT is not None)
  z_BNT = jnp.where(z_BNT == 0, 1.0, z_BNT)
  return f_BNTS / z_BNT[..., None], f_BNT / z_BNT


def _by_blocks(of, q_BTNH, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec, block: int):
  """`of` block by block of queries. A block is computed again in the backward pass."""
  T = q_BTNH.shape[1]
  padded = -(-T // block) * block

  def pad(x, value=0):
    if x is None or x.shape[1] == padded:
      return x
    widths = ((0, 0), (0, padded - T)) + ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=value)

  i_BT = jnp.arange(padded, dtype=jnp.int32)[None] if rule.contiguous else pad(mask_inputs.i_BT)
  q_BTNH, segments_BT = pad(q_BTNH), pad(mask_inputs.q_segment_ids_BT, -1)
  biases = tuple(b.pad_queries(padded) for b in biases)
  S, structure = mask_inputs.j_BS.shape[1], mask_inputs.structure
  if structure is not None:
    structure = structure.pad_queries(padded)

  @jax.checkpoint
  def one(n):
    def cut(x):
      return None if x is None else jax.lax.dynamic_slice_in_dim(x, n * block, block, axis=1)

    part = MaskInputs(
      cut(i_BT),
      mask_inputs.j_BS,
      cut(segments_BT),
      mask_inputs.kv_segment_ids_BS,
      None if structure is None else structure.cut(n * block, block),
    )
    return of(cut(q_BTNH), part, tuple(b.cut(n * block, block, 0, S) for b in biases))

  o_GBQNF = jax.lax.map(one, jnp.arange(padded // block))
  o_BTNF = jnp.moveaxis(o_GBQNF, 0, 1)
  return o_BTNF.reshape(o_BTNF.shape[0], padded, *o_BTNF.shape[3:])[:, :T]
