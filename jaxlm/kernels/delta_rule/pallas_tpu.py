"""The delta rule, plain and gated, as TPU kernels.

Axes as in api.py; Q and R two positions of one chunk; G heads of a block.

With p(R, Q] the product of decays over R < t <= Q and no segment's begin there, 0 the chunk's start:

  (I + L) u = beta (v - p(0, Q] k S),   L_QR = beta_Q (k_Q . k_R) p(R, Q] for R < Q,
  o = p(0, Q] q S + A u,                A_QR = (q_Q . k_R) p(R, Q] for R <= Q,
  S' = p(0, last] S + (p(R, last] k)^T u.

I + L is inverted by halves: of two neighbouring blocks of 2^l tokens whose inverses are known, the
inverse below the diagonal is -X_2 L_21 X_1. No powers of L are formed, whose terms grow where keys
repeat. p(R, Q] is a product of one number of each token per level (`kernels.interval_halves`).
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels import chunked_recurrence, pallas_support
from jaxlm.kernels.chunked_recurrence import Call, Rule, begins
from jaxlm.kernels.delta_rule.blocks import Blocks
from jaxlm.kernels.gla.pallas_tpu import why_not_shapes
from jaxlm.kernels.interval_halves import (
  FLOOR,
  below,
  eye,
  near_sums,
  near_sums_transposed,
  num_levels,
  pair_levels,
)
from jaxlm.kernels.pallas_support import dot


def supports(q, v, device_kind: str, blocks: Blocks, spec=None) -> str | None:
  """None, or the sentence that says why not. q (B, T, N, H), v (B, T, N, E): anything with shape and
  dtype; spec: of q on a mesh.
  """
  return pallas_support.why_not_here() or why_not_shapes(q, v, device_kind, blocks, spec)


def _exact(a, b):
  """Product of float32 matrices in float32: rounded once to bfloat16, the inverse of a chunk of
  nearly parallel keys would lose its small differences.
  """
  return jax.lax.dot_general(
    a,
    b,
    (((1,), (0,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )


def inverses(links):
  """(I + link)^-1 of strictly lower triangular (Q, Q) links. Level by level of all of them: each waits
  for the product before, and the others' products fill that time.
  """
  Q = links[0].shape[0]
  levels = pair_levels(Q)
  xs = [jnp.where(eye(Q), 1.0, 0.0) - jnp.where(levels == 0, link, 0.0) for link in links]
  for level in range(1, num_levels(Q)):
    halves = [_exact(jnp.where(levels == level, link, 0.0), x) for link, x in zip(links, xs)]
    xs = [x - _exact(x, half) for x, half in zip(xs, halves)]
  return xs


class _Head:
  """What both directions compute of one head's chunk. Decays, not logarithms; columns are (Q, 1)."""

  def __init__(self, q, k, v, beta_Q1, s_HE, near_rows, near_columns, start, end):
    Q, dtype = q.shape[0], v.dtype
    self.q, self.k, self.s = q.astype(dtype), k.astype(dtype), s_HE.astype(dtype)
    pair, lower = jnp.where(eye(Q), 1.0, 0.0), jnp.where(below(Q), pair_levels(Q), -1)
    for level, (row, column) in enumerate(zip(near_rows, near_columns)):
      pair = jnp.where(lower == level, row * column, pair)
    self.pair, self.beta = pair, beta_Q1
    self.start, self.end = start, end
    self.same = jnp.where(below(Q), dot(self.k, self.k, (1, 1)) * pair, 0.0)  # without beta
    self.seen = dot(self.q, self.k, (1, 1)) * pair
    self.kept = dot(self.k, self.s, (1, 0))
    self.want = v.astype(jnp.float32) - self.start * self.kept
    self.keep_11 = self.start[-1:]

  def solve(self, inverse_QR):
    dtype = self.k.dtype
    self.inverse = inverse_QR.astype(dtype)
    self.u = dot(self.inverse, (self.beta * self.want).astype(dtype), (1, 0)).astype(dtype)


def _heads(operands, s_FE, H: int, E: int):
  """Per head: its lanes of keys and of values, and a solved _Head. Rows are (G, Q)."""
  q, k, v, beta_GQ, a_GQ = operands
  near, start_GQ, end_GQ = near_sums(a_GQ, 1)
  near = [jnp.exp(x) for x in near]
  columns = [x.T for x in (*near, jnp.exp(start_GQ), jnp.exp(end_GQ), beta_GQ)]
  places, heads = [], []
  for g in range(a_GQ.shape[0]):
    rows = [x[g : g + 1] for x in near]
    *near_columns, start, end, beta = (x[:, g : g + 1] for x in columns)
    keys, values = slice(g * H, (g + 1) * H), slice(g * E, (g + 1) * E)
    places.append((keys, values))
    heads.append(
      _Head(q[:, keys], k[:, keys], v[:, values], beta, s_FE[keys], rows, near_columns, start, end)
    )
  for head, inverse in zip(heads, inverses([head.beta * head.same for head in heads])):
    head.solve(inverse)
  return [(*place, head) for place, head in zip(places, heads)]


def _side_by_side(parts, axis=1):
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _forward(operands, s_FE, *, scale: float, H: int, E: int):
  dtype, out, states = operands[2].dtype, [], []
  for keys, _, h in _heads(operands, s_FE, H, E):
    o = h.start * dot(h.q, h.s, (1, 0)) + dot(h.seen.astype(dtype), h.u, (1, 0))
    out.append(scale * o)
    written = dot((h.end * h.k.astype(jnp.float32)).astype(dtype), h.u, (0, 0))
    states.append(h.keep_11 * s_FE[keys] + written)
  return _side_by_side(out), _side_by_side(states, 0)


def _backward(operands, s_FE, do_QV, ds_FE, *, scale: float, H: int, E: int):
  dtype, Q = operands[2].dtype, operands[3].shape[1]
  dqs, dks, dvs, dbetas, dstarts, dends, states = ([] for _ in range(7))
  dnears = [[] for _ in range(num_levels(Q))]
  last = jax.lax.broadcasted_iota(jnp.int32, (Q, 1), 0) == Q - 1

  def total(x):
    return jnp.sum(x, 1, keepdims=True)

  for keys, values, h in _heads(operands, s_FE, H, E):
    do, ds = scale * do_QV[:, values].astype(jnp.float32), ds_FE[keys].astype(dtype)
    do_d, u = do.astype(dtype), h.u
    k = h.k.astype(jnp.float32)
    dseen = jnp.where(below(Q) | eye(Q), dot(do_d, u, (1, 1)), 0.0)
    du = dot(h.seen.astype(dtype), do_d, (0, 0)) + h.end * dot(h.k, ds, (1, 0))
    drhs = dot(h.inverse, du.astype(dtype), (0, 0))
    dwant = h.beta * drhs
    dlink = jnp.where(below(Q), -dot(drhs.astype(dtype), u, (1, 1)), 0.0)
    written = h.end * dot(u, ds, (1, 1))
    from_state = (-h.start * dwant).astype(dtype)
    dqk = (dseen * h.pair).astype(dtype)
    dkk = (h.beta * dlink * h.pair).astype(dtype)
    dq = h.start * dot(do_d, h.s, (1, 1)) + dot(dqk, h.k, (1, 0))
    dk = written + dot(from_state, h.s, (1, 1)) + dot(dqk, h.q, (0, 0))
    dk += dot(dkk, h.k, (1, 0)) + dot(dkk, h.k, (0, 0))
    dqs.append(dq)
    dks.append(dk)
    dvs.append(dwant)
    dbetas.append(total(drhs * h.want) + total(dlink * h.same))
    through_11 = h.keep_11 * jnp.sum(total(ds_FE[keys] * s_FE[keys]), 0, keepdims=True)
    read = total(do * dot(h.q, h.s, (1, 0))) - total(dwant * h.kept)
    dstarts.append(h.start * read + jnp.where(last, through_11, 0.0))
    dends.append(total(written * k))
    states.append(
      h.keep_11 * ds_FE[keys]
      + dot((h.start * h.q.astype(jnp.float32)).astype(dtype), do_d, (0, 0))
      + dot(h.k, from_state, (0, 0))
    )
    weight = jnp.where(below(Q), dseen * h.seen + h.beta * dlink * h.same, 0.0)
    weight += weight.T  # row sums are then those of the query and of the source
    levels = pair_levels(Q)
    for level, parts in enumerate(dnears):
      parts.append(total(jnp.where(levels == level, weight, 0.0)))

  def rows(parts):
    return _side_by_side(parts).T

  da_GQ = near_sums_transposed([rows(p) for p in dnears], rows(dstarts), rows(dends), 1)
  gradients = _side_by_side(dqs), _side_by_side(dks), _side_by_side(dvs), rows(dbetas), da_GQ
  return gradients, _side_by_side(states, 0)


@functools.lru_cache
def rule(scale: float, H: int, E: int) -> Rule:
  options = dict(scale=scale, H=H, E=E)
  return Rule(
    "delta_rule",
    ("wide", "wide", "wide", "row", "row"),
    2,
    functools.partial(_forward, **options),
    functools.partial(_backward, **options),
  )


def call(G: int, num_blocks: int, H: int, E: int, Q: int, scale: float) -> Call:
  """Of num_blocks blocks of G heads each, in chunks of Q."""
  levels = num_levels(Q)
  both = 2 * G * Q * (2 * Q * H + 2 * (levels - 1) * Q * Q + Q * E + 2 * H * E)
  forward, backward = both + 2 * G * Q * (Q + H) * E, both + 2 * G * Q * (5 * Q + 7 * H) * E
  exps = G * 2 * Q * (levels + 1)
  return Call(rule(scale, H, E), Q, num_blocks, num_blocks, (forward, backward), (exps, exps))


def delta_rule(
  q_BTNH, k_BTNH, v_BTNE, beta_BTN, a_BTN, state_BNHE, ids_BT, scale, *, blocks: Blocks, spec
):
  """(o_BTNE in v's dtype, final state_BNHE). spec: of q, on a mesh."""
  a_BTN = jnp.maximum(a_BTN.astype(jnp.float32), FLOOR)
  if ids_BT is not None:
    a_BTN = jnp.where(begins(ids_BT)[..., None], FLOOR, a_BTN)
  arguments = (
    q_BTNH,
    k_BTNH,
    v_BTNE,
    beta_BTN.astype(jnp.float32),
    a_BTN,
    state_BNHE.astype(jnp.float32),
  )
  run = functools.partial(_on_device, scale=float(scale), blocks=blocks)
  return chunked_recurrence.over_mesh(run, arguments, "wwwwws", "ws", spec)


def _on_device(q_BTNH, k_BTNH, v_BTNE, beta_BTN, a_BTN, state_BNHE, *, scale, blocks: Blocks):
  (B, T, N, H), E, Q = q_BTNH.shape, v_BTNE.shape[-1], blocks.chunk
  G = blocks.heads(N, H, E)

  def pad(v):  # a token of zeros writes nothing and forgets nothing
    return jnp.pad(v, ((0, 0), (0, -T % Q), (0, 0)))

  def wide(v):
    return pad(v.reshape(B, T, -1))

  def row(v_BTN):
    return jnp.swapaxes(pad(v_BTN), 1, 2).reshape(B, N // G, G, -1)

  o_BTF, state = chunked_recurrence.recurrence(
    call(G, N // G, H, E, Q, scale),
    (wide(q_BTNH), wide(k_BTNH), wide(v_BTNE), row(beta_BTN), row(a_BTN)),
    state_BNHE.reshape(B, N * H, E),
  )
  return o_BTF[:, :T].reshape(v_BTNE.shape), state.reshape(state_BNHE.shape)
