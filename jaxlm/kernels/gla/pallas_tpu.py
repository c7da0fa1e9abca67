"""Gated linear attention as TPU kernels.

Axes as in api.py; Q and R two positions of one chunk (query and source).

The square of a chunk is cut into levels of pairs (`kernels.interval_halves`). At level l, with e =
exp(near_l) per channel, queries stand in the later and keys in the earlier halves of z = e (q or
k); the scores are the masked entries of z z^T, and their gradient times z is that of z. A segment
begins with log decays of FLOOR.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels import chunked_recurrence, pallas_support
from jaxlm.kernels.chunked_recurrence import Call, Rule, begins, shards, why_not_split
from jaxlm.kernels.gla.blocks import Blocks
from jaxlm.kernels.interval_halves import (
  FLOOR,
  below,
  eye,
  near_sums,
  near_sums_transposed,
  num_levels,
  pair_levels,
  upper_half,
)
from jaxlm.kernels.pallas_support import LANES, dot


def supports(q, v, device_kind: str, blocks: Blocks, spec=None) -> str | None:
  """None, or the sentence that says why not. q (B, T, N, H), v (B, T, N, E): anything with shape and
  dtype; spec: of q on a mesh.
  """
  return pallas_support.why_not_here() or why_not_shapes(q, v, device_kind, blocks, spec)


def why_not_shapes(q, v, device_kind: str, blocks: Blocks, spec) -> str | None:
  """Also of the delta rule."""
  reason = why_not_split(q.shape[0], q.shape[2], spec)
  if reason is not None:
    return reason
  (N, H), E, Q = q.shape[2:], v.shape[-1], blocks.chunk
  for name, x in (("q", q), ("v", v)):
    if x.dtype not in (jnp.float32, jnp.bfloat16):
      return f"{name} is {x.dtype}; its products take float32 or bfloat16"
  if Q & (Q - 1) or (Q % LANES and not pallas_support.interpreting()):
    return f"chunk {Q} is not a power of two of at least {LANES}; use chunk {LANES}"
  for name, size in (("key", H), ("value", E)):
    if size % 16:
      return f'{name} width {size} is not a multiple of 16; use implementation="xla"'
  N = N // (shards((*spec, None, None, None)[2]) if spec is not None else 1)
  G = blocks.heads(N, H, E)
  if G is None:
    return (
      f"{N} heads of key width {H} and value width {E} do not fill whole registers of {LANES} channels; "
      'use implementation="xla"'
    )
  needed = blocks.bytes(G, H, E, jnp.dtype(q.dtype).itemsize)
  room = pallas_support.vmem_bytes(device_kind)
  if needed > room:
    return (
      f"key width {H} and value width {E} need {needed >> 20} MiB on chip, {device_kind} gives "
      f'{room >> 20}; use implementation="xla"'
    )
  return None


def column_of(row_1X):
  """(1, X) -> (X, 1): a whole register is turned."""
  return jnp.broadcast_to(row_1X, (8, row_1X.shape[1])).T[:, :1]


def row_of(column_X1):
  """(X, 1) -> (1, X)."""
  return jnp.broadcast_to(column_X1, (column_X1.shape[0], LANES)).T[:1]


def by_head(fn, operands, states, widths):
  """fn(of one head's operands and states) for each head of a block; results side by side. widths:
  lanes of one head in each operand. The last `len(states)` results are states, one above the other.
  """
  G = operands[0].shape[1] // widths[0]
  results = []
  for g in range(G):
    mine = [x[:, g * w : (g + 1) * w] for x, w in zip(operands, widths)]
    height = states[0].shape[0] // G
    results.append(fn(*mine, *(s[g * height : (g + 1) * height] for s in states)))
  return [
    parts[0] if G == 1 else jnp.concatenate(parts, 0 if i == len(results[0]) - 1 else 1)
    for i, parts in enumerate(zip(*results))
  ]


def _scores(q, k, near, dtype):
  """(score_QR on and below the diagonal, z, e): of one head."""
  Q = q.shape[0]
  score = jnp.where(eye(Q), jnp.sum(q * k, 1, keepdims=True), 0.0)
  lower_QR = jnp.where(below(Q), pair_levels(Q), -1)
  zs, es = [], []
  for level in range(num_levels(Q)):
    e = jnp.exp(near[level])
    z = jnp.where(upper_half(q.shape, level, 0), q, k) * e
    zd = z.astype(dtype)
    score += jnp.where(lower_QR == level, dot(zd, zd, (1, 1)), 0.0)
    zs.append(z)
    es.append(e)
  return score, zs, es


def _forward(operands, s_FE, *, scale: float, widths):
  dtype = operands[2].dtype

  def head(q, k, v, a, s_HE):
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    near, start, end = near_sums(a, 0)
    score, _, _ = _scores(q, k, near, dtype)
    o = dot(score.astype(dtype), v, (1, 0))
    o += dot((q * jnp.exp(start)).astype(dtype), s_HE.astype(dtype), (1, 0))
    keep_H1 = column_of(jnp.exp(start[-1:]))
    return scale * o, keep_H1 * s_HE + dot((k * jnp.exp(end)).astype(dtype), v, (0, 0))

  return tuple(by_head(head, operands, (s_FE,), widths))


def _backward(operands, s_FE, do_QV, ds_FE, *, scale: float, widths):
  dtype = operands[2].dtype

  def head(q, k, v, a, do, s_HE, ds_HE):
    Q = q.shape[0]
    q, k, do = q.astype(jnp.float32), k.astype(jnp.float32), scale * do.astype(jnp.float32)
    near, start, end = near_sums(a, 0)
    score, zs, es = _scores(q, k, near, dtype)
    e_start, e_end, do_d = jnp.exp(start), jnp.exp(end), do.astype(dtype)
    s, ds = s_HE.astype(dtype), ds_HE.astype(dtype)
    dscore = dot(do_d, v, (1, 1))
    read, written = dot(do_d, s, (1, 1)), dot(v, ds, (1, 1))
    dq, dk = read * e_start, written * e_end
    dstart, dend = dq * q, dk * k
    dv = dot(score.astype(dtype), do_d, (0, 0)) + dot((k * e_end).astype(dtype), ds, (1, 0))
    keep_1H = e_start[-1:]
    through_1H = keep_1H * row_of(jnp.sum(ds_HE * s_HE, 1, keepdims=True))
    last = jax.lax.broadcasted_iota(jnp.int32, start.shape, 0) == Q - 1
    dstart += jnp.where(last, through_1H, 0.0)
    ds_in = column_of(keep_1H) * ds_HE + dot((q * e_start).astype(dtype), do_d, (0, 0))
    own_Q1 = jnp.sum(jnp.where(eye(Q), dscore, 0.0), 1, keepdims=True)
    dq, dk = dq + own_Q1 * k, dk + own_Q1 * q
    both = jnp.where(below(Q), dscore, dscore.T)
    levels, dnear = pair_levels(Q), []
    for level in range(num_levels(Q)):
      upper = upper_half(q.shape, level, 0)
      w = jnp.where(levels == level, both, 0.0).astype(dtype)
      dz = dot(w, zs[level].astype(dtype), (1, 0))
      dnear.append(dz * zs[level])
      dz *= es[level]
      dq, dk = dq + jnp.where(upper, dz, 0.0), dk + jnp.where(upper, 0.0, dz)
    return dq, dk, dv, near_sums_transposed(dnear, dstart, dend, 0), ds_in

  *gradients, ds_FE = by_head(head, (*operands, do_QV), (s_FE, ds_FE), (*widths, widths[2]))
  return tuple(gradients), ds_FE


@functools.lru_cache
def rule(scale: float, H: int, E: int) -> Rule:
  options = dict(scale=scale, widths=(H, H, E, H))
  return Rule(
    "gla",
    ("wide",) * 4,
    2,
    functools.partial(_forward, **options),
    functools.partial(_backward, **options),
  )


def call(G: int, num_blocks: int, H: int, E: int, Q: int, scale: float) -> Call:
  """Of num_blocks blocks of G heads each, in chunks of Q."""
  levels = num_levels(Q)
  forward = 2 * G * Q * (levels * Q * H + Q * E + 2 * H * E)
  backward = 2 * G * Q * (2 * levels * Q * H + 2 * Q * E + 5 * H * E)
  exps = G * Q * H * (levels + 2)
  return Call(rule(scale, H, E), Q, num_blocks, num_blocks, (forward, backward), (exps, exps))


def gla(q_BTNH, k_BTNH, v_BTNE, log_decay_BTNH, state_BNHE, ids_BT, scale, *, blocks: Blocks, spec):
  """(o_BTNE in v's dtype, final state_BNHE). spec: of q, on a mesh."""
  a_BTNH = jnp.maximum(log_decay_BTNH.astype(jnp.float32), FLOOR)
  if ids_BT is not None:
    a_BTNH = jnp.where(begins(ids_BT)[..., None, None], FLOOR, a_BTNH)
  arguments = q_BTNH, k_BTNH, v_BTNE, a_BTNH, state_BNHE.astype(jnp.float32)
  run = functools.partial(_on_device, scale=float(scale), blocks=blocks)
  return chunked_recurrence.over_mesh(run, arguments, "wwwws", "ws", spec)


def _on_device(q_BTNH, k_BTNH, v_BTNE, a_BTNH, state_BNHE, *, scale: float, blocks: Blocks):
  (B, T, N, H), E, Q = q_BTNH.shape, v_BTNE.shape[-1], blocks.chunk
  G = blocks.heads(N, H, E)

  def wide(v):  # a token of zeros adds nothing and forgets nothing
    return jnp.pad(v.reshape(B, T, -1), ((0, 0), (0, -T % Q), (0, 0)))

  o_BTF, state = chunked_recurrence.recurrence(
    call(G, N // G, H, E, Q, scale),
    tuple(map(wide, (q_BTNH, k_BTNH, v_BTNE, a_BTNH))),
    state_BNHE.reshape(B, N * H, E),
  )
  return o_BTF[:, :T].reshape(v_BTNE.shape), state.reshape(state_BNHE.shape)
