"""Accumulated phases and the rotation by them as two Pallas TPU kernels.

Axes: B batch, T time, S tokens summed at a time, E rows of the exponents' table, N query heads, K kv
heads, W channels turned at a time, L channels of all kv heads (K head_dim), M of all query heads.

Tokens lie in sublanes and the channels of all heads in lanes, as a projection makes them: nothing is
transposed. Each channel computes the phase of its pair, twice in all: what it costs is less than
spreading sines over lanes. What moves between lanes and between tokens is a product:

  exponent_SW = rows^T table      i log f, and -10,000 where a token adds nothing: exp of it is 0
  local_SW    = triangle exp(exponent)
  partner_SW  = x swap            -x2 at the first channel of a pair, x1 at the second
  y = x cos phi + partner(x) sin phi;   dx = dy cos phi - partner(dy) sin phi
  G = dy partner(y),  R_t = sum_{m >= t} G_m,  d log f_t = sum_channels i exp(exponent) R_t

One factor of each such product is 0, 1, -1 or a small whole number. It is exact in bfloat16, so that
the other in three bfloat16 parts gives a float32 product in three passes of the matrix unit.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels.pallas_support import on_tpu, round_up
from jaxlm.kernels.phase.blocks import STEP
from jaxlm.kernels.phase.circle import HI, LO, sincos

NN, NT, TN = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))
NOTHING = -1e4  # its exponential is 0
INVERSE_TURN = 0.5 / np.pi
START, CARRIED, BEHIND = 0, 1, 2  # rows of `segment`


@dataclasses.dataclass(frozen=True)
class Channels:
  """The static side: heads and the pairs of their channels. columns: channels turned at a time, a
  multiple of head_dim."""

  num_heads: int
  num_kv_heads: int
  head_dim: int
  rotary_dim: int
  layout: str
  ladder_start: int
  inclusive: bool
  columns: int
  tokens: int

  @property
  def kv_width(self) -> int:
    return self.num_kv_heads * self.head_dim

  @property
  def group(self) -> int:
    return self.num_heads // self.num_kv_heads

  @property
  def table_rows(self) -> int:
    return round_up(self.num_kv_heads + 2, 16)

  def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(is turned, pair, is its first, partner) of each channel of a head."""
    c, P = np.arange(self.head_dim), self.rotary_dim // 2
    if self.layout == "half":
      first, pair = c < P, c % P
      partner = np.where(first, c + P, c - P)
    else:
      first, pair = c % 2 == 0, c // 2
      partner = c ^ 1
    return c < self.rotary_dim, pair, first, partner

  def first_channels(self) -> np.ndarray:
    """(P,) the channel of a head that is the first of each pair."""
    turned, pair, first, _ = self.pairs()
    at = np.flatnonzero(turned & first)
    return at[np.argsort(pair[at])]

  def second_channels(self) -> np.ndarray:
    return self.pairs()[3][self.first_channels()]

  def table(self) -> np.ndarray:
    """(E, L): the power of each channel in its head's row; 1 in row K, what a token adds nothing
    by; 1 in row K + 1 where a channel is not turned."""
    turned, pair, _, _ = self.pairs()
    out = np.zeros((self.table_rows, self.num_kv_heads, self.head_dim), np.float32)
    for k in range(self.num_kv_heads):
      out[k, k] = np.where(turned, self.ladder_start + pair, 0)
    out[self.num_kv_heads] = 1
    out[self.num_kv_heads + 1] = ~turned
    return out.reshape(self.table_rows, -1)

  def swap(self) -> np.ndarray:
    """(W, W): x swap is -x2 at a first channel and x1 at a second one, 0 where nothing is turned."""
    turned, _, first, partner = self.pairs()
    out, at = np.zeros((self.head_dim, self.head_dim), np.float32), np.flatnonzero(turned)
    out[partner[at], at] = np.where(first[at], -1, 1)
    return np.kron(np.eye(self.columns // self.head_dim, dtype=np.float32), out)


def _parts(x):
  """Three bfloat16 arrays whose sum is the float32 array x."""
  high = x.astype(jnp.bfloat16)
  rest = x - high.astype(jnp.float32)
  middle = rest.astype(jnp.bfloat16)
  return (rest - middle.astype(jnp.float32)).astype(jnp.bfloat16), middle, high


def _product(a, b, dimensions):
  """Float32 product of a float32 array and one that is exact in bfloat16, in either order."""
  if a.dtype == jnp.bfloat16:
    terms = [(a, part) for part in _parts(b)]
  else:
    terms = [(part, b) for part in _parts(a)]
  low, middle, high = (
    jax.lax.dot_general(
      *pair,
      dimensions,
      precision=jax.lax.Precision.DEFAULT,
      preferred_element_type=jnp.float32,
    )
    for pair in terms
  )
  return low + middle + high


def _partner(x, swap_WW):
  """-x2 at first and x1 at second channels, float32."""
  if x.dtype == jnp.float32:
    return _product(x, swap_WW, NN)
  return jax.lax.dot_general(
    x, swap_WW, NN, precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32
  )


def _wrap(phi):
  turns = jnp.floor(phi * INVERSE_TURN + 0.5)
  return (phi - turns * HI) - turns * LO


def _triangle(inclusive: bool, reverse: bool, segment):
  """(S, S) bfloat16: which tokens (columns) are in the sum at a token (row), of its own segment."""
  row = jax.lax.broadcasted_iota(jnp.int32, (STEP, STEP), 0)
  column = jax.lax.broadcasted_iota(jnp.int32, (STEP, STEP), 1)
  earlier, later = (row, column) if reverse else (column, row)
  seen = earlier <= later if inclusive else earlier < later
  if segment is not None:
    row_8S, column_S8 = segment
    seen &= column_S8[:, START : START + 1] == row_8S[START : START + 1]
  return jnp.where(seen, 1.0, 0.0).astype(jnp.bfloat16)


def _segment(ref, rows):
  """(8, S) and its transpose, or None."""
  if ref is None:
    return None
  row_8S = ref[0, :, rows]
  return row_8S, row_8S.T


def _kept(value_1W, segment, row: int):
  """What was carried here, at the tokens whose segment it belongs to: (1, W), or (S, W)."""
  return value_1W if segment is None else segment[1][:, row : row + 1] * value_1W


def _groups(channels: Channels, body):
  """body(group of columns, its first channel among those of the kv heads)."""
  num = channels.kv_width // channels.columns

  def run(n, _):
    body(pl.multiple_of(n * channels.columns, channels.columns))

  jax.lax.fori_loop(0, num, run, None)


def _at(start, size):
  return pl.ds(start, size)


def _query_columns(channels: Channels, start, g: int):
  """Channels of the g-th query head that turns by the kv head whose channels begin at `start`."""
  return pl.ds(
    pl.multiple_of(start * channels.group + g * channels.columns, channels.columns),
    channels.columns,
  )


def _steps(channels: Channels, rows_ref, table_WE, rows):
  """f^i of the tokens `rows`, (S, W)."""
  return jnp.exp(_product(rows_ref[0, :, rows], table_WE, TN))


def _turn(x, cos_SW, sin_SW, swap_WW, dtype):
  return (x.astype(jnp.float32) * cos_SW + _partner(x, swap_WW) * sin_SW).astype(dtype)


def _forward_body(channels: Channels, refs: dict):
  j, last = pl.program_id(1), pl.num_programs(1) - 1
  carry, swap_WW = refs["carry"], refs["swap"][...]

  @pl.when(j == 0)
  def _():
    carry[...] = refs["initial"][0]

  refs["carries"][0, 0] = carry[...]
  blocks = [pl.ds(at, STEP) for at in range(0, channels.tokens, STEP)]
  segments = [_segment(refs.get("segment"), rows) for rows in blocks]
  plain = None if segments[0] is not None else _triangle(channels.inclusive, False, None)

  def columns(start):
    here = pl.ds(start, channels.columns)
    table_EW, carried_1W = refs["table"][:, here], carry[:, here]
    for rows, segment in zip(blocks, segments):
      step_SW = _steps(channels, refs["rows"], table_EW, rows)
      triangle = plain if segment is None else _triangle(channels.inclusive, False, segment)
      local_SW = _product(triangle, step_SW, NN)
      sin_SW, cos_SW = sincos(_wrap(local_SW + _kept(carried_1W, segment, CARRIED)))
      for g in range(channels.group):
        q_here = _query_columns(channels, start, g)
        refs["q_out"][0, rows, q_here] = _turn(
          refs["q"][0, rows, q_here], cos_SW, sin_SW, swap_WW, refs["q_out"].dtype
        )
      refs["k_out"][0, rows, here] = _turn(
        refs["k"][0, rows, here], cos_SW, sin_SW, swap_WW, refs["k_out"].dtype
      )
      carried_1W = _after(channels, local_SW, step_SW, carried_1W, segment)
    carry[:, here] = carried_1W

  _groups(channels, columns)

  @pl.when(j == last)
  def _():
    refs["final"][0] = carry[...]


def _after(channels: Channels, local_SW, step_SW, carried_1W, segment):
  """The phase after the last token, wrapped."""
  total_1W = local_SW[STEP - 1 :]
  if not channels.inclusive:
    total_1W += step_SW[STEP - 1 :]
  return _wrap(total_1W + _kept(carried_1W, segment, CARRIED)[-1:])


def _backward_body(channels: Channels, refs: dict):
  j, last = pl.program_id(1), pl.num_programs(1) - 1
  behind, swap_WW = refs["behind"], refs["swap"][...]

  @pl.when(j == 0)
  def _():
    behind[...] = refs["d_final"][0]

  refs["d_rows"][...] = jnp.zeros(refs["d_rows"].shape, jnp.float32)
  blocks = [pl.ds(at, STEP) for at in range(0, channels.tokens, STEP)]
  segments = [_segment(refs.get("segment"), rows) for rows in blocks]
  plain = None
  if segments[0] is None:
    plain = [_triangle(channels.inclusive, reverse, None) for reverse in (False, True)]

  def triangle(segment, reverse):
    return (
      plain[reverse] if segment is None else _triangle(channels.inclusive, reverse, segment)
    )

  def columns(start):
    here = pl.ds(start, channels.columns)
    table_EW, carried_1W = refs["table"][:, here], refs["carries"][0, 0, :, here]
    known = []
    for rows, segment in zip(blocks, segments):
      step_SW = _steps(channels, refs["rows"], table_EW, rows)
      local_SW = _product(triangle(segment, False), step_SW, NN)
      phase_SW = _wrap(local_SW + _kept(carried_1W, segment, CARRIED))
      known.append((step_SW, *sincos(phase_SW)))
      carried_1W = _after(channels, local_SW, step_SW, carried_1W, segment)
    behind_1W = behind[:, here]
    for rows, segment, (step_SW, sin_SW, cos_SW) in reversed(
      list(zip(blocks, segments, known))
    ):
      G_SW = _pull_turn(refs, "k", rows, here, cos_SW, sin_SW, swap_WW)
      for g in range(channels.group):
        q_here = _query_columns(channels, start, g)
        G_SW += _pull_turn(refs, "q", rows, q_here, cos_SW, sin_SW, swap_WW)
      local_SW = _product(triangle(segment, True), G_SW, NN)
      R_SW = local_SW + _kept(behind_1W, segment, BEHIND)
      refs["d_rows"][0, :, rows] += _product(table_EW, step_SW * R_SW, NT)
      total_1W = local_SW[:1] if channels.inclusive else local_SW[:1] + G_SW[:1]
      behind_1W = total_1W + _kept(behind_1W, segment, BEHIND)[:1]
    behind[:, here] = behind_1W

  _groups(channels, columns)

  @pl.when(j == last)
  def _():
    refs["d_initial"][0] = behind[...]


def _pull_turn(refs, name: str, rows, here, cos_SW, sin_SW, swap_WW):
  """Writes the gradient of q or k; returns that of the phase."""
  dy, y = refs[f"d_{name}"][0, rows, here], refs[name][0, rows, here]
  out = refs[f"d_{name}_out"]
  out[0, rows, here] = _turn(dy, cos_SW, -sin_SW, swap_WW, out.dtype)
  return dy.astype(jnp.float32) * _partner(y, swap_WW)


def _call(body, channels: Channels, name: str, ins: dict, outs: dict, scratch: str, cost, back: bool):
  """One pallas_call over (batch, blocks of tokens). ins, outs: (array, kind); kinds: "tokens" (B, T,
  width), "rows" (B, E or 8, T), "block" (B, blocks, 1, L), "row" (B, 1, L), "table" (whole)."""
  B, T, _ = ins["q"][0].shape
  num, Q = T // channels.tokens, channels.tokens

  def at(j):
    return num - 1 - j if back else j

  def spec(array, kind):
    shape = array.shape
    if kind == "tokens":
      return pl.BlockSpec((1, Q, shape[2]), lambda b, j: (b, at(j), 0))
    if kind == "rows":
      return pl.BlockSpec((1, shape[1], Q), lambda b, j: (b, 0, at(j)))
    if kind == "block":
      return pl.BlockSpec((1, 1, *shape[2:]), lambda b, j: (b, at(j), 0, 0))
    if kind == "row":
      return pl.BlockSpec((1, *shape[1:]), lambda b, j: (b, 0, 0))
    return pl.BlockSpec(shape, lambda b, j: (0,) * len(shape))

  names = (*ins, *outs, scratch)
  out = pl.pallas_call(
    lambda *refs: body(channels, dict(zip(names, refs))),
    grid=(B, num),
    in_specs=[spec(*entry) for entry in ins.values()],
    out_specs=[spec(*entry) for entry in outs.values()],
    out_shape=[array for array, _ in outs.values()],
    scratch_shapes=[pltpu.VMEM((1, channels.kv_width), jnp.float32)],
    cost_estimate=cost,
    name=name,
    **on_tpu("parallel", "arbitrary"),
  )(*(array for array, _ in ins.values()))
  return dict(zip(outs, out))


def cost(channels: Channels, B: int, T: int, itemsize: int, backward: bool) -> pl.CostEstimate:
  """Bytes: q and k once, and out once; the rows. flops: of the products with triangle and swap."""
  L, M = channels.kv_width, channels.num_heads * channels.head_dim
  sums = 2 * 3 * B * T * L * (STEP + 2 * channels.table_rows)
  swaps = 2 * B * T * (L + M) * channels.columns
  moved = B * T * (L + M) * itemsize
  return pl.CostEstimate(
    flops=(2 * sums + 2 * swaps) if backward else sums + swaps,
    transcendentals=B * T * L,
    bytes_accessed=(3 if backward else 2) * moved
    + 4 * B * T * channels.table_rows * (2 if backward else 1),
  )


def _constants(channels: Channels) -> dict:
  table, swap = jnp.asarray(channels.table(), jnp.bfloat16), jnp.asarray(channels.swap(), jnp.bfloat16)
  return dict(table=(table, "table"), swap=(swap, "table"))


def _struct(shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def forward(channels: Channels, q_BTM, k_BTL, rows_BET, segment_B8T, initial_B1L):
  """(q and k turned, carries before every block (B, blocks, 1, L), final_B1L). T: whole blocks."""
  B, T, L = k_BTL.shape
  out = _call(
    _forward_body,
    channels,
    "phase_forward",
    dict(q=(q_BTM, "tokens"), k=(k_BTL, "tokens"), rows=(rows_BET, "rows"))
    | ({} if segment_B8T is None else dict(segment=(segment_B8T, "rows")))
    | dict(initial=(initial_B1L, "row"))
    | _constants(channels),
    dict(
      q_out=(_struct(q_BTM.shape, q_BTM.dtype), "tokens"),
      k_out=(_struct(k_BTL.shape, k_BTL.dtype), "tokens"),
      carries=(_struct((B, T // channels.tokens, 1, L)), "block"),
      final=(_struct((B, 1, L)), "row"),
    ),
    "carry",
    cost(channels, B, T, q_BTM.dtype.itemsize, False),
    False,
  )
  return out["q_out"], out["k_out"], out["carries"], out["final"]


def backward(
  channels: Channels, q_BTM, k_BTL, rows_BET, segment_B8T, carries, dq_BTM, dk_BTL, d_final_B1L
):
  """(dq_BTM, dk_BTL, d_rows_BET, d_initial_B1L). q, k: as turned; dq, dk: of them."""
  B, T, L = k_BTL.shape
  out = _call(
    _backward_body,
    channels,
    "phase_backward",
    dict(
      q=(q_BTM, "tokens"),
      k=(k_BTL, "tokens"),
      d_q=(dq_BTM, "tokens"),
      d_k=(dk_BTL, "tokens"),
      rows=(rows_BET, "rows"),
      carries=(carries, "block"),
      d_final=(d_final_B1L, "row"),
    )
    | ({} if segment_B8T is None else dict(segment=(segment_B8T, "rows")))
    | _constants(channels),
    dict(
      d_q_out=(_struct(q_BTM.shape, q_BTM.dtype), "tokens"),
      d_k_out=(_struct(k_BTL.shape, k_BTL.dtype), "tokens"),
      d_rows=(_struct(rows_BET.shape), "rows"),
      d_initial=(_struct((B, 1, L)), "row"),
    ),
    "behind",
    cost(channels, B, T, q_BTM.dtype.itemsize, True),
    True,
  )
  return out["d_q_out"], out["d_k_out"], out["d_rows"], out["d_initial"]
