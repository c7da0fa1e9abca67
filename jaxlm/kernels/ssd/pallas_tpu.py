"""SSD as TPU kernels.

Axes as in api.py; of one chunk and one block of heads: Q and R two positions (query and source), G
heads, F their channels (G, H) side by side. Channels are sublanes and time is lanes, so that a
number per head and token is a row which is repeated for the head's channels.

The square of a chunk is cut into levels of pairs (`kernels.interval_halves`). At level l, with e =
exp(near_l) per head and u = dt x,

  y_Q += e_Q sum_R (C_Q . B_R) (e u)_R        over the pairs (R, Q) of that level,

one matrix product for all heads of a block, which share B and C. No (Q, R) array exists per head. A
reset is a log decay of FLOOR.

The backward puts dy into the later and u into the earlier halves, z = e (dy or u). Then z times the
symmetric masked scores is, on the one, what the token read (gradient of its decay), and on the
other, what was read of it (gradient of u); z^T z is the gradient of the scores.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels import chunked_recurrence, pallas_support
from jaxlm.kernels.chunked_recurrence import Call, Rule, shards, why_not_split
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
from jaxlm.kernels.ssd.blocks import Blocks


def supports(x, b, c, device_kind: str, blocks: Blocks, spec=None) -> str | None:
  """None, or the sentence that says why not. x (B, T, N, H), b, c (B, T, K, E): anything with shape
  and dtype; spec: of x on a mesh.
  """
  reason = pallas_support.why_not_here() or why_not_split(x.shape[0], x.shape[2], spec)
  if reason is not None:
    return reason
  (N, H), (K, E), Q = x.shape[2:], b.shape[2:], blocks.chunk
  if x.dtype not in (jnp.float32, jnp.bfloat16) or not x.dtype == b.dtype == c.dtype:
    return (
      f"x, b and c are {x.dtype}, {b.dtype} and {c.dtype}; its products take three float32 or three "
      "bfloat16 arrays"
    )
  if Q & (Q - 1) or (Q % LANES and not pallas_support.interpreting()):
    return f"chunk {Q} is not a power of two of at least {LANES}; use chunk {LANES}"
  if H % 16:
    return f'head_dim {H} is not a multiple of 16; use implementation="xla"'
  if K > 1 and E % LANES:
    return f'state size {E} of {K} groups is not a multiple of {LANES}; use implementation="xla"'
  parts = shards((*spec, None, None, None)[2]) if spec is not None else 1
  if K > 1 and K % parts:
    return f'{K} groups cannot be split over {parts} devices; use implementation="xla"'
  N, K = N // parts, max(1, K // parts)
  G = blocks.heads(N, K, H)
  if G is None:
    return (
      f"{N // K} heads of head_dim {H} in a group do not fill whole registers of {LANES} channels; "
      'use implementation="xla"'
    )
  needed = blocks.bytes(G * H, E, jnp.dtype(x.dtype).itemsize)
  room = pallas_support.vmem_bytes(device_kind)
  if needed > room:
    return (
      f"head_dim {H} with state size {E} needs {needed >> 20} MiB on chip, {device_kind} gives "
      f'{room >> 20}; use implementation="xla"'
    )
  return None


def _heads(v_FX, G: int):
  """(F, X) -> (G, H, X)."""
  return v_FX.reshape(G, -1, v_FX.shape[-1])


def _flat(v_GHX):
  return v_GHX.reshape(-1, v_GHX.shape[-1])


def _turned(v_QF, G: int):
  """(Q, F) -> (G, H, Q), float32."""
  return _heads(v_QF.astype(jnp.float32).T, G)


def _forward(operands, s_FE):
  x_QF, dt_GQ, log_a_GQ, b_QE, c_QE, d_G1 = operands
  (G, Q), dtype = dt_GQ.shape, x_QF.dtype
  near, start_GQ, end_GQ = near_sums(log_a_GQ, 1)
  x = _turned(x_QF, G)
  u = x * dt_GQ[:, None]
  score_RQ = dot(b_QE, c_QE, (1, 1))
  own_1Q = jnp.sum(jnp.where(eye(Q), score_RQ, 0.0), 0, keepdims=True)
  y = x * (dt_GQ * own_1Q + d_G1)[:, None]
  y += _heads(dot(s_FE.astype(dtype), c_QE, (1, 1)), G) * jnp.exp(start_GQ)[:, None]
  level_RQ = jnp.where(below(Q), -1, pair_levels(Q))
  for level in range(num_levels(Q)):
    e = jnp.exp(near[level])[:, None]
    w_RQ = jnp.where(level_RQ == level, score_RQ, 0.0).astype(dtype)
    y += _heads(dot(_flat(u * e).astype(dtype), w_RQ, (1, 0)), G) * e
  keep_G1 = jnp.exp(start_GQ[:, Q - 1 :])
  s_FE = _flat(_heads(s_FE, G) * keep_G1[:, None])
  s_FE += dot(_flat(u * jnp.exp(end_GQ)[:, None]).astype(dtype), b_QE, (1, 0))
  return _flat(y).T, s_FE


def _backward(operands, s_FE, dy_QF, ds_FE):
  x_QF, dt_GQ, log_a_GQ, b_QE, c_QE, d_G1 = operands
  (G, Q), dtype = dt_GQ.shape, x_QF.dtype
  near, start_GQ, end_GQ = near_sums(log_a_GQ, 1)
  x, dy = _turned(x_QF, G), _turned(dy_QF, G)
  u = x * dt_GQ[:, None]
  score_RQ = dot(b_QE, c_QE, (1, 1))
  diagonal, under = eye(Q), below(Q)
  own_1Q = jnp.sum(jnp.where(diagonal, score_RQ, 0.0), 0, keepdims=True)
  # A token's own: y = (dt own + d) x.
  each_GQ = jnp.sum(dy * x, 1)
  ddt_GQ = own_1Q * each_GQ
  dx = dy * (dt_GQ * own_1Q + d_G1)[:, None]
  dscore = jnp.where(diagonal, jnp.sum(dt_GQ * each_GQ, 0, keepdims=True), 0.0)
  # What was read of the old state, and what was written to the new one.
  s, ds = s_FE.astype(dtype), ds_FE.astype(dtype)
  in_GHQ, out_GHQ = dy * jnp.exp(start_GQ)[:, None], u * jnp.exp(end_GQ)[:, None]
  taught = _heads(dot(ds, b_QE, (1, 1)), G)
  dstart_GQ = jnp.sum(in_GHQ * _heads(dot(s, c_QE, (1, 1)), G), 1)
  dend_GQ = jnp.sum(out_GHQ * taught, 1)
  du = taught * jnp.exp(end_GQ)[:, None]
  in_FQ, out_FQ = _flat(in_GHQ).astype(dtype), _flat(out_GHQ).astype(dtype)
  keep_G1 = jnp.exp(start_GQ[:, Q - 1 :])
  through_G1 = keep_G1 * jnp.sum(jnp.sum(_heads(ds_FE * s_FE, G), 1), 1, keepdims=True)
  last = jax.lax.broadcasted_iota(jnp.int32, (G, Q), 1) == Q - 1
  dstart_GQ += jnp.where(last, through_G1, 0.0)
  ds_in_FE = _flat(_heads(ds_FE, G) * keep_G1[:, None]) + dot(in_FQ, c_QE, (1, 0))
  dc_QE, db_QE = dot(in_FQ, s, (0, 0)), dot(out_FQ, ds, (0, 0))
  both_RQ = jnp.where(under, score_RQ.T, score_RQ)
  levels = pair_levels(Q)
  dnear = []
  for level in range(num_levels(Q)):
    mask, upper_1Q = levels == level, upper_half((1, Q), level, 1)
    e_GQ = jnp.exp(near[level])
    z = jnp.where(upper_1Q, dy, u) * e_GQ[:, None]
    z_FQ = _flat(z).astype(dtype)
    w = jnp.where(mask, both_RQ, 0.0).astype(dtype)
    out = _heads(dot(z_FQ, w, (1, 0)), G)
    dnear.append(jnp.sum(z * out, 1))
    du += out * jnp.where(upper_1Q, 0.0, e_GQ)[:, None]
    dscore += jnp.where(mask, dot(z_FQ, z_FQ, (0, 0)), 0.0)
  # dscore is symmetric; on and below the diagonal it is (Q, R), on and above (R, Q).
  dc_QE += dot(jnp.where(under | diagonal, dscore, 0.0).astype(dtype), b_QE, (1, 0))
  db_QE += dot(jnp.where(under, 0.0, dscore).astype(dtype), c_QE, (1, 0))
  ddt_GQ += jnp.sum(du * x, 1)
  dx += du * dt_GQ[:, None]
  dlog_a_GQ = near_sums_transposed(dnear, dstart_GQ, dend_GQ, 1)
  return (_flat(dx).T, ddt_GQ, dlog_a_GQ, db_QE, dc_QE, each_GQ), ds_in_FE


RULE = Rule("ssd", ("wide", "row", "row", "group", "group", "head"), 0, _forward, _backward)


def flops(F: int, E: int, Q: int) -> tuple[int, int]:
  """Of one chunk of F channels, (forward, backward): products with the state and of the levels."""
  levels = num_levels(Q)
  return 2 * F * Q * (2 * E + levels * Q), 2 * F * Q * (5 * E + 2 * levels * Q)


def ssd(
  x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, state_BNHE, reset_BT, d_N, *, blocks: Blocks, spec=None
):
  """(y_BTNH in x's dtype with d x added, final state_BNHE). spec: of x, on a mesh."""
  log_a_BTN = jnp.maximum(log_a_BTN, FLOOR)
  if reset_BT is not None:
    log_a_BTN = jnp.where(reset_BT[..., None], FLOOR, log_a_BTN)
  d_N = jnp.zeros(x_BTNH.shape[2]) if d_N is None else d_N
  arguments = (
    x_BTNH,
    log_a_BTN,
    dt_BTN,
    b_BTKE,
    c_BTKE,
    state_BNHE.astype(jnp.float32),
    d_N.astype(jnp.float32),
  )
  run = functools.partial(_on_device, blocks=blocks)
  group = "w" if b_BTKE.shape[2] > 1 else "g"
  return chunked_recurrence.over_mesh(run, arguments, f"www{group}{group}sn", "ws", spec)


def _on_device(x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, state_BNHE, d_N, *, blocks: Blocks):
  (B, T, N, H), (K, E), Q = x_BTNH.shape, b_BTKE.shape[2:], blocks.chunk
  G, padded = blocks.heads(N, K, H), pallas_support.round_up(T, Q)

  # Padding tokens have dt = 0 and log a = 0: they add nothing and forget nothing.
  def pad(v):
    return jnp.pad(v, ((0, 0), (0, padded - T)) + ((0, 0),) * (v.ndim - 2))

  def wide(v):
    return pad(v.reshape(B, T, -1))

  def row(v_BTN):
    return jnp.swapaxes(pad(v_BTN), 1, 2).reshape(B, N // G, G, padded)

  operands = (
    wide(x_BTNH),
    row(dt_BTN),
    row(log_a_BTN),
    wide(b_BTKE),
    wide(c_BTKE),
    d_N.reshape(N // G, G, 1),
  )
  y_BTF, state_BFE = chunked_recurrence.recurrence(
    call(G, N // G, K, H, E, Q), operands, state_BNHE.reshape(B, N * H, E)
  )
  return y_BTF[:, :T].reshape(x_BTNH.shape), state_BFE.reshape(state_BNHE.shape)


def call(G: int, num_blocks: int, num_groups: int, H: int, E: int, Q: int) -> Call:
  """Of num_blocks blocks of G heads each, in chunks of Q."""
  exps = G * Q * (2 + num_levels(Q))
  return Call(RULE, Q, num_blocks, num_groups, flops(G * H, E, Q), (exps, exps))
