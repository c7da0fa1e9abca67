"""Accumulated phases and the rotation by them as two Pallas TPU kernels.

Axes: B batch, T time, S tokens summed at a time, N query heads, K kv heads, E = K + 1 rows: log f
of each kv head and what is added to every exponent, 0 or -10,000; P pairs of a head, L of all kv
heads, Y of one group of kv heads, H head_dim, M channels of all query heads, F of all kv heads.

Time is the last axis of all that has time, as in the attention kernels, so that XLA need not
transpose between the two. A token's log f is then one row for all pairs of its head, and the two
channels of a pair ("half" layout) lie whole registers apart:

  step_YS  = exp(i log f + added), 0 where a token adds nothing
  local_YS = step triangle                                       one product per 128 tokens
  y1 = x1 cos phi - x2 sin phi,   y2 = x2 cos phi + x1 sin phi;  backward: by -phi
  G = dy2 y1 - dy1 y2,  R_t = sum_{m >= t} G_m (exclusive: m > t),  d log f_t = sum_pairs i step R_t

The triangle is 0 or 1 and exact in bfloat16, so that the other factor in three bfloat16 parts gives a
float32 product in three passes of the matrix unit.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels.pallas_support import LANES, on_tpu
from jaxlm.kernels.phase.blocks import STEP
from jaxlm.kernels.phase.circle import HI, LO, sincos

NOTHING = -1e4  # its exponential is 0
INVERSE_TURN = 0.5 / np.pi
START, CARRIED, BEHIND = 0, 1, 2  # rows of `segment`


@dataclasses.dataclass(frozen=True)
class Channels:
  """The static side: heads, the pairs (first half, second half) of their channels, tokens of a block."""

  num_heads: int
  num_kv_heads: int
  head_dim: int
  ladder_start: int
  inclusive: bool
  tokens: int

  @property
  def pairs(self) -> int:
    return self.head_dim // 2

  @property
  def num_pairs(self) -> int:
    """Of all kv heads."""
    return self.num_kv_heads * self.pairs

  @property
  def queries(self) -> int:
    """Query heads of a kv head."""
    return self.num_heads // self.num_kv_heads

  @property
  def together(self) -> int:
    """Kv heads whose phases are summed by one product: the most that divide num_kv_heads and have at
    most 128 pairs, at least one."""
    most = max(1, LANES // self.pairs)
    return next(n for n in range(most, 0, -1) if self.num_kv_heads % n == 0)


def _product(x_YS, triangle_SS):
  """Float32 product of a float32 array and one that is exact in bfloat16."""
  high = x_YS.astype(jnp.bfloat16)
  rest = x_YS - high.astype(jnp.float32)
  middle = rest.astype(jnp.bfloat16)
  low = (rest - middle.astype(jnp.float32)).astype(jnp.bfloat16)
  low, middle, high = (
    jnp.dot(
      part,
      triangle_SS,
      precision=jax.lax.Precision.DEFAULT,
      preferred_element_type=jnp.float32,
    )
    for part in (low, middle, high)
  )
  return low + middle + high


def _wrap(phi):
  """circle.wrap without stop_gradient: nothing is differentiated here."""
  turns = jnp.floor(phi * INVERSE_TURN + 0.5)
  return (phi - turns * HI) - turns * LO


def _triangle(inclusive: bool, reverse: bool, segment_8S):
  """(S, S) bfloat16: which tokens (rows) are in the sum at a token (column), of its own segment."""
  row = jax.lax.broadcasted_iota(jnp.int32, (STEP, STEP), 0)
  column = jax.lax.broadcasted_iota(jnp.int32, (STEP, STEP), 1)
  earlier, later = (column, row) if reverse else (row, column)
  seen = earlier <= later if inclusive else earlier < later
  if segment_8S is not None:
    seen &= segment_8S.T[:, START : START + 1] == segment_8S[START : START + 1]
  return jnp.where(seen, 1.0, 0.0).astype(jnp.bfloat16)


def _kept(value_Y1, segment_8S, row: int):
  """What was carried here, at the tokens whose segment it belongs to: (Y, 1), or (Y, S)."""
  return value_Y1 if segment_8S is None else value_Y1 * segment_8S[row : row + 1]


def _as_column(row_1L):
  return jnp.broadcast_to(row_1L, (8, row_1L.shape[1])).T[:, :1]


def _as_row(column_L1):
  return jnp.broadcast_to(column_L1, (column_L1.shape[0], LANES)).T[:1]


def _after(channels: Channels, local_YS, step_YS, carried_Y1, segment_8S):
  """The phase after the last token, wrapped."""
  total_Y1 = local_YS[:, STEP - 1 :]
  if not channels.inclusive:
    total_Y1 += step_YS[:, STEP - 1 :]
  return _wrap(total_Y1 + _kept(carried_Y1, segment_8S, CARRIED)[:, -1:])


class _Group:
  """Some kv heads with their query heads, in one block of tokens."""

  def __init__(self, channels: Channels, refs: dict, number):
    self.channels, self.refs = channels, refs
    self.head = number * channels.together  # the first
    Y = channels.together * channels.pairs
    self.pairs = pl.ds(pl.multiple_of(number * Y, Y), Y)

  def heads(self):
    """(kv head in the group, [(array, channels)] of what turns by its phase)."""
    H, G = self.channels.head_dim, self.channels.queries
    for n in range(self.channels.together):
      k = self.head + n
      queries = [("q", pl.ds(pl.multiple_of((k * G + g) * H, H), H)) for g in range(G)]
      yield n, [("k", pl.ds(pl.multiple_of(k * H, H), H)), *queries]

  def ladder(self):
    """(P, S): the power of each pair of a head."""
    i = jax.lax.broadcasted_iota(jnp.int32, (self.channels.pairs, STEP), 0)
    return (i + self.channels.ladder_start).astype(jnp.float32)

  def powers(self, tokens):
    """f^i, 0 where a token adds nothing, (Y, S)."""
    rows, K = self.refs["rows"], self.channels.num_kv_heads
    adds_1S = rows[0, K, :, tokens]
    heads = [
      jnp.exp(self.ladder() * rows[0, self.head + n, :, tokens] + adds_1S)
      for n in range(self.channels.together)
    ]
    return jnp.concatenate(heads, axis=0)

  def of_head(self, n: int, x_YS):
    P = self.channels.pairs
    return x_YS[n * P : (n + 1) * P]

  def halves(self, x_HS):
    P = self.channels.pairs
    return x_HS[:P].astype(jnp.float32), x_HS[P:].astype(jnp.float32)


def _turned(x1, x2, cos, sin, dtype):
  return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=0).astype(dtype)


def _steps(channels: Channels, refs: dict, *reverse: bool):
  """(tokens, their rows of `segment` or None, a triangle for each of `reverse`) of each step."""
  ats = [pl.ds(at, STEP) for at in range(0, channels.tokens, STEP)]

  def triangles(segment_8S):
    return [_triangle(channels.inclusive, back, segment_8S) for back in reverse]

  if "segment" not in refs:
    plain = triangles(None)
    return [(at, None, *plain) for at in ats]
  segments = [refs["segment"][0, :, at] for at in ats]
  return [(at, segment, *triangles(segment)) for at, segment in zip(ats, segments)]


def _for_groups(channels: Channels, body):
  jax.lax.fori_loop(0, channels.num_kv_heads // channels.together, lambda n, _: body(n), None)


def _forward_body(channels: Channels, refs: dict):
  j, last = pl.program_id(1), pl.num_programs(1) - 1
  carry = refs["carry"]

  @pl.when(j == 0)
  def _():
    carry[...] = _as_column(refs["initial"][0])

  refs["carries"][0, 0] = _as_row(carry[...])
  steps = _steps(channels, refs, False)

  def turn(number):
    group = _Group(channels, refs, number)
    carried_Y1 = carry[group.pairs]
    for tokens, segment_8S, triangle_SS in steps:
      step_YS = group.powers(tokens)
      local_YS = _product(step_YS, triangle_SS)
      sin_YS, cos_YS = sincos(_wrap(local_YS + _kept(carried_Y1, segment_8S, CARRIED)))
      for n, arrays in group.heads():
        cos_PS, sin_PS = group.of_head(n, cos_YS), group.of_head(n, sin_YS)
        for name, at in arrays:
          out = refs[name + "_out"]
          x1, x2 = group.halves(refs[name][0, at, tokens])
          out[0, at, tokens] = _turned(x1, x2, cos_PS, sin_PS, out.dtype)
      carried_Y1 = _after(channels, local_YS, step_YS, carried_Y1, segment_8S)
    carry[group.pairs] = carried_Y1

  _for_groups(channels, turn)

  @pl.when(j == last)
  def _():
    refs["final"][0] = _as_row(carry[...])


def _backward_body(channels: Channels, refs: dict):
  j, last = pl.program_id(1), pl.num_programs(1) - 1
  behind, carries = refs["behind"], refs["carried"]

  @pl.when(j == 0)
  def _():
    behind[...] = _as_column(refs["d_final"][0])

  carries[...] = _as_column(refs["carries"][0, 0])
  refs["d_rows"][0, channels.num_kv_heads] = jnp.zeros((1, channels.tokens), jnp.float32)
  steps = _steps(channels, refs, False, True)

  def turn_back(number):
    group = _Group(channels, refs, number)
    carried_Y1, known = carries[group.pairs], []
    for tokens, segment_8S, triangle_SS, _ in steps:
      step_YS = group.powers(tokens)
      local_YS = _product(step_YS, triangle_SS)
      known.append((step_YS, _wrap(local_YS + _kept(carried_Y1, segment_8S, CARRIED))))
      carried_Y1 = _after(channels, local_YS, step_YS, carried_Y1, segment_8S)
    behind_Y1 = behind[group.pairs]
    for (tokens, segment_8S, _, triangle_SS), (step_YS, phase_YS) in reversed(
      list(zip(steps, known))
    ):
      sin_YS, cos_YS = sincos(phase_YS)
      G_heads = []
      for n, arrays in group.heads():
        cos_PS, sin_PS = group.of_head(n, cos_YS), group.of_head(n, sin_YS)
        G_heads.append(sum(_turn_back(group, *where, tokens, cos_PS, sin_PS) for where in arrays))
      G_YS = jnp.concatenate(G_heads, axis=0)
      local_YS = _product(G_YS, triangle_SS)
      d_step_YS = step_YS * (local_YS + _kept(behind_Y1, segment_8S, BEHIND))
      for n in range(channels.together):
        d_1S = jnp.sum(group.ladder() * group.of_head(n, d_step_YS), axis=0, keepdims=True)
        refs["d_rows"][0, group.head + n, :, tokens] = d_1S
      total_Y1 = local_YS[:, :1] if channels.inclusive else local_YS[:, :1] + G_YS[:, :1]
      behind_Y1 = total_Y1 + _kept(behind_Y1, segment_8S, BEHIND)[:, :1]
    behind[group.pairs] = behind_Y1

  _for_groups(channels, turn_back)

  @pl.when(j == last)
  def _():
    refs["d_initial"][0] = _as_row(behind[...])


def _turn_back(group: _Group, name: str, at, tokens, cos_PS, sin_PS):
  """Writes the gradient of q or k of one head; returns that of the phase of each pair."""
  refs, out = group.refs, group.refs[f"d_{name}_out"]
  dy1, dy2 = group.halves(refs["d_" + name][0, at, tokens])
  y1, y2 = group.halves(refs[name][0, at, tokens])
  out[0, at, tokens] = _turned(dy1, dy2, cos_PS, -sin_PS, out.dtype)
  return dy2 * y1 - dy1 * y2


def _call(
  body, channels: Channels, name: str, ins: dict, outs: dict, scratch: tuple, cost, back: bool
):
  """One pallas_call over (batch, blocks of tokens). ins, outs: (array, kind); kinds: "tokens" (B, ..., T),
  "block" (B, blocks, 1, L), "row" (B, 1, L)."""
  B, _, T = ins["q"][0].shape
  num, Q = T // channels.tokens, channels.tokens

  def at(j):
    return num - 1 - j if back else j

  def spec(array, kind):
    shape = array.shape
    if kind == "tokens":
      middle = (0,) * (len(shape) - 2)
      return pl.BlockSpec((1, *shape[1:-1], Q), lambda b, j: (b, *middle, at(j)))
    if kind == "block":
      return pl.BlockSpec((1, 1, *shape[2:]), lambda b, j: (b, at(j), 0, 0))
    return pl.BlockSpec((1, *shape[1:]), lambda b, j: (b, 0, 0))

  names = (*ins, *outs, *scratch)
  out = pl.pallas_call(
    lambda *refs: body(channels, dict(zip(names, refs))),
    grid=(B, num),
    in_specs=[spec(*entry) for entry in ins.values()],
    out_specs=[spec(*entry) for entry in outs.values()],
    out_shape=[array for array, _ in outs.values()],
    scratch_shapes=[pltpu.VMEM((channels.num_pairs, 1), jnp.float32) for _ in scratch],
    cost_estimate=cost,
    name=name,
    **on_tpu("parallel", "arbitrary"),
  )(*(array for array, _ in ins.values()))
  return dict(zip(outs, out))


def cost(channels: Channels, B: int, T: int, itemsize: int, backward: bool) -> pl.CostEstimate:
  """Bytes: q and k, as read and as written, backward also their gradients as read; log f, backward
  also its gradient; not segments and carries. flops: of the products with triangles, a float32
  product once per part. transcendentals: the powers of f; sines and cosines are polynomials."""
  L, width = channels.num_pairs, (channels.num_heads + channels.num_kv_heads) * channels.head_dim
  sums, moved = 2 * 3 * B * T * L * STEP, B * T * width * itemsize
  return pl.CostEstimate(
    flops=2 * sums if backward else sums,
    transcendentals=B * T * L,
    bytes_accessed=(3 if backward else 2) * moved
    + 4 * B * T * (channels.num_kv_heads + 1) * (2 if backward else 1),
  )


def _struct(shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def forward(channels: Channels, q_BMT, k_BFT, rows_BE1T, segment_B8T, initial_B1L):
  """(q and k turned, carries before every block (B, blocks, 1, L), final_B1L). T: whole blocks."""
  (B, _, T), L = k_BFT.shape, channels.num_pairs
  out = _call(
    _forward_body,
    channels,
    "phase_forward",
    dict(q=(q_BMT, "tokens"), k=(k_BFT, "tokens"), rows=(rows_BE1T, "tokens"))
    | ({} if segment_B8T is None else dict(segment=(segment_B8T, "tokens")))
    | dict(initial=(initial_B1L, "row")),
    dict(
      q_out=(_struct(q_BMT.shape, q_BMT.dtype), "tokens"),
      k_out=(_struct(k_BFT.shape, k_BFT.dtype), "tokens"),
      carries=(_struct((B, T // channels.tokens, 1, L)), "block"),
      final=(_struct((B, 1, L)), "row"),
    ),
    ("carry",),
    cost(channels, B, T, q_BMT.dtype.itemsize, False),
    False,
  )
  return out["q_out"], out["k_out"], out["carries"], out["final"]


def backward(
  channels: Channels, q_BMT, k_BFT, rows_BE1T, segment_B8T, carries, dq_BMT, dk_BFT, d_final_B1L
):
  """(dq_BMT, dk_BFT, d_rows_BE1T, d_initial_B1L). q, k: as turned; dq, dk: of them."""
  (B, _, T), L = k_BFT.shape, channels.num_pairs
  out = _call(
    _backward_body,
    channels,
    "phase_backward",
    dict(
      q=(q_BMT, "tokens"),
      k=(k_BFT, "tokens"),
      d_q=(dq_BMT, "tokens"),
      d_k=(dk_BFT, "tokens"),
      rows=(rows_BE1T, "tokens"),
      carries=(carries, "block"),
      d_final=(d_final_B1L, "row"),
    )
    | ({} if segment_B8T is None else dict(segment=(segment_B8T, "tokens"))),
    dict(
      d_q_out=(_struct(q_BMT.shape, q_BMT.dtype), "tokens"),
      d_k_out=(_struct(k_BFT.shape, k_BFT.dtype), "tokens"),
      d_rows=(_struct(rows_BE1T.shape), "tokens"),
      d_initial=(_struct((B, 1, L)), "row"),
    ),
    ("behind", "carried"),
    cost(channels, B, T, q_BMT.dtype.itemsize, True),
    True,
  )
  return out["d_q_out"], out["d_k_out"], out["d_rows"], out["d_initial"]
