"""Accumulated phases and the rotation by them as two Pallas TPU kernels.

Axes: B batch, T time, S tokens summed at a time, E rows of the exponents' table, N query heads, K kv
heads, L pairs of all kv heads (K head_dim / 2), Y pairs of one group (128), X channels of one unit,
M channels of all query heads.

Tokens lie in sublanes and the channels of all heads in lanes, as a projection makes them: nothing is
transposed. Sums over tokens and changes of lanes are products:

  exponent_SY = rows^T table      i log f, and -10,000 where a token adds nothing: exp of it is 0
  local_SY    = triangle exp(exponent)
  partner_SX  = x swap            -x2 at the first channel of a pair, x1 at the second
  y = x cos phi + partner(x) sin phi;   dx = dy cos phi - partner(dy) sin phi
  G = fold(dy partner(y)),  R_t = sum_{m >= t} G_m,  d log f_t = sum_pairs i exp(exponent) R_t

One factor of each such product is 0, 1, -1 or a small whole number. It is exact in bfloat16, so that
the other in three bfloat16 parts gives a float32 product in three passes of the matrix unit. Cosines
are computed once per pair and spread to both of its channels by rolls; `fold` is the transpose.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels.pallas_support import LANES, on_tpu, round_up
from jaxlm.kernels.phase.blocks import STEP
from jaxlm.kernels.phase.circle import HI, LO, sincos

NN, NT, TN = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))
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
  def group(self) -> int:
    """Query heads of a kv head."""
    return self.num_heads // self.num_kv_heads

  @property
  def unit(self) -> int:
    """Channels that are turned at a time: whole heads, and whole registers."""
    return max(self.head_dim, LANES)

  @property
  def table_rows(self) -> int:
    return round_up(self.num_kv_heads + 1, 16)

  def table(self) -> np.ndarray:
    """(E, L): the power of each pair in its head's row; 1 in row K, what a token adds nothing by."""
    out = np.zeros((self.table_rows, self.num_kv_heads, self.pairs), np.float32)
    for k in range(self.num_kv_heads):
      out[k, k] = self.ladder_start + np.arange(self.pairs)
    out[self.num_kv_heads] = 1
    return out.reshape(self.table_rows, -1)

  def swap(self) -> np.ndarray:
    """(X, X): x swap is -x2 at a first channel and x1 at a second one."""
    P = self.pairs
    one = np.kron(np.array([[0, 1], [-1, 0]], np.float32), np.eye(P, dtype=np.float32))
    return np.kron(np.eye(self.unit // self.head_dim, dtype=np.float32), one)

  def moves(self) -> list[dict[int, list[int]]]:
    """For each half of the 256 channels of a group of 128 pairs: {roll: stretches of channels that
    then have their pair}."""
    stretch = min(self.pairs, LANES)
    out = []
    for half in range(2):
      shifts: dict[int, list[int]] = {}
      for s in range(LANES // stretch):
        source = (half * (LANES // stretch) + s) // 2
        shifts.setdefault((s - source) * stretch % LANES, []).append(s)
      out.append(shifts)
    return out


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


def _partner(x, swap_XX):
  """-x2 at first and x1 at second channels, float32."""
  if x.dtype == jnp.float32:
    return _product(x, swap_XX, NN)
  return jax.lax.dot_general(
    x, swap_XX, NN, precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32
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


def _kept(value_1Y, segment, row: int):
  """What was carried here, at the tokens whose segment it belongs to: (1, W), or (S, W)."""
  return value_1Y if segment is None else segment[1][:, row : row + 1] * value_1Y


def _spread(channels: Channels, x_SY):
  """(S, 256): what belongs to a pair at both of its channels."""
  stretch = min(channels.pairs, LANES)
  of = jax.lax.broadcasted_iota(jnp.int32, x_SY.shape, 1) // stretch
  halves, rolled = [], {}
  for shifts in channels.moves():
    out = None
    for shift, stretches in shifts.items():
      if shift not in rolled:
        rolled[shift] = pltpu.roll(x_SY, shift, 1) if shift else x_SY
      out = rolled[shift] if out is None else jnp.where(_among(of, stretches), rolled[shift], out)
    halves.append(out)
  return jnp.concatenate(halves, axis=1)


def _fold(channels: Channels, x_SZ):
  """The transpose of _spread: the sum over both channels of each pair."""
  stretch = min(channels.pairs, LANES)
  of = jax.lax.broadcasted_iota(jnp.int32, (x_SZ.shape[0], LANES), 1) // stretch
  by_shift: dict[int, list] = {}
  for half, shifts in enumerate(channels.moves()):
    x = x_SZ[:, half * LANES : (half + 1) * LANES]
    for shift, stretches in shifts.items():
      whole = len(stretches) * stretch == LANES
      by_shift.setdefault(shift, []).append(
        x if whole else jnp.where(_among(of, stretches), x, 0.0)
      )
  total = None
  for shift, terms in by_shift.items():
    term = functools.reduce(jnp.add, terms)
    term = pltpu.roll(term, LANES - shift, 1) if shift else term
    total = term if total is None else total + term
  return total


def _among(of, stretches):
  return functools.reduce(jnp.logical_or, (of == s for s in stretches))


def _groups(channels: Channels, body):
  """body(first pair) for every group of 128 pairs."""
  jax.lax.fori_loop(
    0,
    channels.num_pairs // LANES,
    lambda n, _: body(pl.multiple_of(n * LANES, LANES)),
    None,
  )


def _units(channels: Channels, start):
  """(channels within the group's 256, of k, [of the query heads]) of each unit of a group."""
  X, G = channels.unit, channels.group
  for at in range(0, 2 * LANES, X):
    k = 2 * start + at
    queries = [pl.ds(pl.multiple_of(k * G + g * X, X), X) for g in range(G)]
    yield slice(at, at + X), pl.ds(pl.multiple_of(k, X), X), queries


def _steps(rows_ref, table_EY, rows):
  """f^i of the tokens `rows`, (S, Y)."""
  return jnp.exp(_product(rows_ref[0, :, rows], table_EY, TN))


def _turn(x, cos_SX, sin_SX, swap_XX, dtype):
  return (x.astype(jnp.float32) * cos_SX + _partner(x, swap_XX) * sin_SX).astype(dtype)


def _forward_body(channels: Channels, refs: dict):
  j, last = pl.program_id(1), pl.num_programs(1) - 1
  carry, swap_XX = refs["carry"], refs["swap"][...]

  @pl.when(j == 0)
  def _():
    carry[...] = refs["initial"][0]

  refs["carries"][0, 0] = carry[...]
  blocks = [pl.ds(at, STEP) for at in range(0, channels.tokens, STEP)]
  segments = [_segment(refs.get("segment"), rows) for rows in blocks]
  plain = None if segments[0] is not None else _triangle(channels.inclusive, False, None)

  def pairs(start):
    here = pl.ds(start, LANES)
    table_EY, carried_1Y = refs["table"][:, here], carry[:, here]
    for rows, segment in zip(blocks, segments):
      step_SY = _steps(refs["rows"], table_EY, rows)
      triangle = plain if segment is None else _triangle(channels.inclusive, False, segment)
      local_SY = _product(triangle, step_SY, NN)
      sin_SY, cos_SY = sincos(_wrap(local_SY + _kept(carried_1Y, segment, CARRIED)))
      sin_SZ, cos_SZ = _spread(channels, sin_SY), _spread(channels, cos_SY)
      for unit, of_k, of_q in _units(channels, start):
        for name, at in [("k", of_k), *(("q", at) for at in of_q)]:
          out = refs[name + "_out"]
          out[0, rows, at] = _turn(
            refs[name][0, rows, at], cos_SZ[:, unit], sin_SZ[:, unit], swap_XX, out.dtype
          )
      carried_1Y = _after(channels, local_SY, step_SY, carried_1Y, segment)
    carry[:, here] = carried_1Y

  _groups(channels, pairs)

  @pl.when(j == last)
  def _():
    refs["final"][0] = carry[...]


def _after(channels: Channels, local_SY, step_SY, carried_1Y, segment):
  """The phase after the last token, wrapped."""
  total_1Y = local_SY[STEP - 1 :]
  if not channels.inclusive:
    total_1Y += step_SY[STEP - 1 :]
  return _wrap(total_1Y + _kept(carried_1Y, segment, CARRIED)[-1:])


def _backward_body(channels: Channels, refs: dict):
  j, last = pl.program_id(1), pl.num_programs(1) - 1
  behind, swap_XX = refs["behind"], refs["swap"][...]

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
    return plain[reverse] if segment is None else _triangle(channels.inclusive, reverse, segment)

  def pairs(start):
    here = pl.ds(start, LANES)
    table_EY, carried_1Y = refs["table"][:, here], refs["carries"][0, 0, :, here]
    known = []
    for rows, segment in zip(blocks, segments):
      step_SY = _steps(refs["rows"], table_EY, rows)
      local_SY = _product(triangle(segment, False), step_SY, NN)
      phase_SY = _wrap(local_SY + _kept(carried_1Y, segment, CARRIED))
      known.append((step_SY, *sincos(phase_SY)))
      carried_1Y = _after(channels, local_SY, step_SY, carried_1Y, segment)
    behind_1Y = behind[:, here]
    for rows, segment, (step_SY, sin_SY, cos_SY) in reversed(list(zip(blocks, segments, known))):
      sin_SZ, cos_SZ = _spread(channels, sin_SY), _spread(channels, cos_SY)
      G_units = []
      for unit, of_k, of_q in _units(channels, start):
        parts = [
          _pull_turn(refs, name, rows, at, cos_SZ[:, unit], sin_SZ[:, unit], swap_XX)
          for name, at in [("k", of_k), *(("q", at) for at in of_q)]
        ]
        G_units.append(functools.reduce(jnp.add, parts))
      G_SY = _fold(channels, jnp.concatenate(G_units, axis=1))
      local_SY = _product(triangle(segment, True), G_SY, NN)
      R_SY = local_SY + _kept(behind_1Y, segment, BEHIND)
      refs["d_rows"][0, :, rows] += _product(table_EY, step_SY * R_SY, NT)
      total_1Y = local_SY[:1] if channels.inclusive else local_SY[:1] + G_SY[:1]
      behind_1Y = total_1Y + _kept(behind_1Y, segment, BEHIND)[:1]
    behind[:, here] = behind_1Y

  _groups(channels, pairs)

  @pl.when(j == last)
  def _():
    refs["d_initial"][0] = behind[...]


def _pull_turn(refs, name: str, rows, at, cos_SX, sin_SX, swap_XX):
  """Writes the gradient of q or k; returns that of the phase at both channels of each pair."""
  dy, y, out = refs["d_" + name][0, rows, at], refs[name][0, rows, at], refs[f"d_{name}_out"]
  out[0, rows, at] = _turn(dy, cos_SX, -sin_SX, swap_XX, out.dtype)
  return dy.astype(jnp.float32) * _partner(y, swap_XX)


def _call(
  body, channels: Channels, name: str, ins: dict, outs: dict, scratch: str, cost, back: bool
):
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
    scratch_shapes=[pltpu.VMEM((1, channels.num_pairs), jnp.float32)],
    cost_estimate=cost,
    name=name,
    **on_tpu("parallel", "arbitrary"),
  )(*(array for array, _ in ins.values()))
  return dict(zip(outs, out))


def cost(channels: Channels, B: int, T: int, itemsize: int, backward: bool) -> pl.CostEstimate:
  """Bytes: q and k once, and out once; the rows. flops: of the products with triangle and swap."""
  L, width = channels.num_pairs, (channels.num_heads + channels.num_kv_heads) * channels.head_dim
  sums = 2 * 3 * B * T * L * (STEP + 2 * channels.table_rows)
  swaps = 2 * B * T * width * channels.unit
  moved = B * T * width * itemsize
  return pl.CostEstimate(
    flops=(2 * sums + 2 * swaps) if backward else sums + swaps,
    transcendentals=B * T * L,
    bytes_accessed=(3 if backward else 2) * moved
    + 4 * B * T * channels.table_rows * (2 if backward else 1),
  )


def _constants(channels: Channels) -> dict:
  table, swap = (
    jnp.asarray(channels.table(), jnp.bfloat16),
    jnp.asarray(channels.swap(), jnp.bfloat16),
  )
  return dict(table=(table, "table"), swap=(swap, "table"))


def _struct(shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def forward(channels: Channels, q_BTM, k_BTF, rows_BET, segment_B8T, initial_B1L):
  """(q and k turned, carries before every block (B, blocks, 1, L), final_B1L). T: whole blocks."""
  (B, T, _), L = k_BTF.shape, channels.num_pairs
  out = _call(
    _forward_body,
    channels,
    "phase_forward",
    dict(q=(q_BTM, "tokens"), k=(k_BTF, "tokens"), rows=(rows_BET, "rows"))
    | ({} if segment_B8T is None else dict(segment=(segment_B8T, "rows")))
    | dict(initial=(initial_B1L, "row"))
    | _constants(channels),
    dict(
      q_out=(_struct(q_BTM.shape, q_BTM.dtype), "tokens"),
      k_out=(_struct(k_BTF.shape, k_BTF.dtype), "tokens"),
      carries=(_struct((B, T // channels.tokens, 1, L)), "block"),
      final=(_struct((B, 1, L)), "row"),
    ),
    "carry",
    cost(channels, B, T, q_BTM.dtype.itemsize, False),
    False,
  )
  return out["q_out"], out["k_out"], out["carries"], out["final"]


def backward(
  channels: Channels, q_BTM, k_BTF, rows_BET, segment_B8T, carries, dq_BTM, dk_BTF, d_final_B1L
):
  """(dq_BTM, dk_BTF, d_rows_BET, d_initial_B1L). q, k: as turned; dq, dk: of them."""
  (B, T, _), L = k_BTF.shape, channels.num_pairs
  out = _call(
    _backward_body,
    channels,
    "phase_backward",
    dict(
      q=(q_BTM, "tokens"),
      k=(k_BTF, "tokens"),
      d_q=(dq_BTM, "tokens"),
      d_k=(dk_BTF, "tokens"),
      rows=(rows_BET, "rows"),
      carries=(carries, "block"),
      d_final=(d_final_B1L, "row"),
    )
    | ({} if segment_B8T is None else dict(segment=(segment_B8T, "rows")))
    | _constants(channels),
    dict(
      d_q_out=(_struct(q_BTM.shape, q_BTM.dtype), "tokens"),
      d_k_out=(_struct(k_BTF.shape, k_BTF.dtype), "tokens"),
      d_rows=(_struct(rows_BET.shape), "rows"),
      d_initial=(_struct((B, 1, L)), "row"),
    ),
    "behind",
    cost(channels, B, T, q_BTM.dtype.itemsize, True),
    True,
  )
  return out["d_q_out"], out["d_k_out"], out["d_rows"], out["d_initial"]
