"""Flash attention with biases as Pallas TPU kernels: forward, and one backward kernel for all
gradients.

Axes: B batch, N query heads, K kv heads, H and F head sizes, T queries, S keys; Q queries and W
keys of one tile; P pairs of numbers per key and query; R distances.

Time is the last axis of every array, so that a head of 64 channels fills whole registers. A tile of
scores has its keys in rows: what belongs to a query (maximum, sum, log-sum-exp) is then a row and
is reduced and broadcast without crossing lanes.

  s_jq = softcap(scale k_j.q_q) + strip_jq + sum_p (column_pq - row_pj),   MASKED where hidden

The bias of distance is one strip per head: strip[j, x] = line[x - j], built by rolling the line,
read at the tile's distance. It stays in VMEM while the batch passes. Backward, with p = exp(s -
lse):

  dv = do p;  ds = p (do.v - sum(do o));  dk = q ds', dq = k ds', ds' = ds through the softcap;
  d column = sum_j ds;  d row = -sum_q ds;  the line's gradient is ds added up in a strip and rolled
  back.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels.attention.reference import LOWEST_MAX, MASKED, AttentionSpec
from jaxlm.kernels.attention.tiles import Tiles
from jaxlm.kernels.pallas_support import LANES, on_tpu

ROWS = 64  # of a strip, rolled at a time: enough to hide a roll's latency
NN, NT, TN = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))


class Operands(NamedTuple):
  """Padded arguments, time last. All but q, k and v may be None.

  q_BNHT, k_BKHS, v_BKFS; line_N1R: the bias of distance; row_BNPS: subtracted per key, its N may be
  1;
  column_BNPT: added per query, with as many P as row; segments int32 (B, 1, length), those of keys
  never 0.
  """

  q: Any
  k: Any
  v: Any
  line: Any = None
  row: Any = None
  column: Any = None
  q_segment: Any = None
  k_segment: Any = None


@dataclasses.dataclass(frozen=True)
class Call:
  """The static side of a kernel call."""

  rule: AttentionSpec
  forward: Tiles
  backward: Tiles
  precision: Any


class _Grid(NamedTuple):
  """Where a grid step is. Tile numbers q and k."""

  head: Any
  batch: Any
  q: Any
  k: Any


def _dot(call, a, b, dimensions):
  return jax.lax.dot_general(
    a, b, dimensions, precision=call.precision, preferred_element_type=jnp.float32
  )


def _at(start, size):
  return pl.ds(pl.multiple_of(start, LANES), size)


def _as_column(row_1W):
  """(1, W) to (W, 1)."""
  return jnp.broadcast_to(row_1W, (8, row_1W.shape[1])).T[:, :1]


def _exact_scale(scale: float) -> bool:
  """Whether multiplying by it only changes exponents."""
  return math.frexp(scale)[0] == 0.5


def _scores(call: Call, grid: Tiles, at: _Grid, refs: dict, strip, masked: bool):
  """(s_WQ, tanh of the softcap or None) of one tile."""
  rule, q_HQ, k_HW = call.rule, refs["q"][0, 0], refs["k"][0, 0]
  if rule.scale != 1.0 and _exact_scale(rule.scale):
    q_HQ = q_HQ * jnp.asarray(rule.scale, q_HQ.dtype)
  s_WQ, capped = _dot(call, k_HW, q_HQ, TN), None
  if not _exact_scale(rule.scale):
    s_WQ *= rule.scale
  if rule.softcap is not None:
    capped = jnp.tanh(s_WQ / rule.softcap)
    s_WQ = rule.softcap * capped
  if strip is not None:
    s_WQ += strip[:, _at(grid.distance(at.q, at.k) - grid.distances[0], grid.block_q)]
  if "row" in refs:
    for p in range(refs["row"].shape[2]):
      row_W1 = _as_column(refs["row"][0, 0, p : p + 1])
      # The difference first: both may be large and their difference small.
      s_WQ += refs["column"][0, 0, p : p + 1] - row_W1 if "column" in refs else -row_W1
  seen = None
  if masked:
    lag = jax.lax.broadcasted_iota(jnp.int32, s_WQ.shape, 1) - jax.lax.broadcasted_iota(
      jnp.int32, s_WQ.shape, 0
    )
    distance = grid.distance(at.q, at.k)  # i - j = lag + distance
    seen = lag >= -distance if grid.causal else None
    if grid.window is not None:
      near = lag < grid.window - distance
      seen = near if seen is None else seen & near
      if not grid.causal:
        seen &= lag > -grid.window - distance
  if "q_segment" in refs:
    same = _as_column(refs["k_segment"][0]) == refs["q_segment"][0]
    seen = same if seen is None else seen & same
  return (s_WQ if seen is None else jnp.where(seen, s_WQ, MASKED)), capped


def _for_live(grid: Tiles, at: _Grid, tile):
  """Runs tile(masked) if the tile is live, with a mask only where positions hide pairs."""
  if not grid.positional:
    tile(False)
    return
  live, whole = grid.is_live(at.q, at.k), grid.is_whole(at.q, at.k)
  pl.when(live & whole)(functools.partial(tile, False))
  pl.when(live & jnp.logical_not(whole))(functools.partial(tile, True))


def _spread(line_ref, strip):
  """strip[j] = line rolled by j: eight rows one by one, then each doubling rolls what is there by
  its height.
  """
  for j in range(8):
    strip[j : j + 1] = pltpu.roll(line_ref[0], j, 1) if j else line_ref[0]
  height = 8
  while height < strip.shape[0]:
    step = min(height, ROWS)

    def rows(g, _, height=height, step=step):
      strip[pl.ds(pl.multiple_of(height + step * g, 8), step)] = pltpu.roll(
        strip[pl.ds(pl.multiple_of(step * g, 8), step)], height % strip.shape[1], 1
      )

    jax.lax.fori_loop(0, height // step, rows, None)
    height *= 2


def _gather(strip, line_ref):
  """The adjoint of `_spread`: adds the strip's rows up, rolled back. Overwrites the strip."""
  height, width = strip.shape[0] // 2, strip.shape[1]
  while height >= 8:
    step = min(height, ROWS)

    def rows(g, _, height=height, step=step):
      into = pl.ds(pl.multiple_of(step * g, 8), step)
      strip[into] += pltpu.roll(
        strip[pl.ds(pl.multiple_of(height + step * g, 8), step)], (width - height) % width, 1
      )

    jax.lax.fori_loop(0, height // step, rows, None)
    height //= 2
  line_ref[0] = functools.reduce(
    jnp.add, (pltpu.roll(strip[j : j + 1], width - j, 1) if j else strip[:1] for j in range(8))
  )


def _forward_body(call: Call, grid: Tiles, refs: dict):
  head, batch, q, k = (pl.program_id(axis) for axis in range(4))
  at = _Grid(head, batch, q, k)
  m, l, acc, strip = refs["m"], refs["l"], refs["acc"], refs.get("strip")
  if strip is not None:
    pl.when((batch == 0) & (q == 0) & (k == 0))(lambda: _spread(refs["line"], strip))

  @pl.when(k == 0)
  def _():
    m[...] = jnp.full(m.shape, 0.0 if call.rule.softmax1 else LOWEST_MAX, jnp.float32)
    l[...] = jnp.zeros(l.shape, jnp.float32)
    acc[...] = jnp.zeros(acc.shape, jnp.float32)

  def tile(masked):
    s_WQ, _ = _scores(call, grid, at, refs, strip, masked)
    old_1Q = m[...]
    new_1Q = jnp.maximum(old_1Q, jnp.max(s_WQ, 0, keepdims=True))
    p_WQ = jnp.exp(s_WQ - new_1Q)
    fade_1Q = jnp.exp(old_1Q - new_1Q)
    m[...] = new_1Q
    l[...] = fade_1Q * l[...] + jnp.sum(p_WQ, 0, keepdims=True)
    v_FW = refs["v"][0, 0]
    acc[...] = fade_1Q * acc[...] + _dot(call, v_FW, p_WQ.astype(v_FW.dtype), NN)

  _for_live(grid, at, tile)

  @pl.when(k == grid.num_k - 1)
  def _():
    m_1Q, l_1Q = m[...], l[...]
    if call.rule.softmax1:
      l_1Q += jnp.exp(-m_1Q)
    l_1Q = jnp.where(l_1Q == 0, 1.0, l_1Q)
    refs["o"][0, 0] = (acc[...] / l_1Q).astype(refs["o"].dtype)
    refs["lse"][0, 0] = m_1Q + jnp.log(l_1Q)


def _backward_body(call: Call, grid: Tiles, refs: dict):
  head, batch, k, q = (pl.program_id(axis) for axis in range(4))
  at, rule = _Grid(head, batch, q, k), call.rule
  dk, dv, dq, strip, d_strip = (
    refs["dk_sum"],
    refs["dv_sum"],
    refs["dq_sum"],
    refs.get("strip"),
    refs.get("d_strip"),
  )
  columns = _at(q * grid.block_q, grid.block_q)
  first, last = (k == 0) & (q == 0), (k == grid.num_k - 1) & (q == grid.num_q - 1)

  def zero(ref):
    return jnp.zeros(ref.shape, jnp.float32)

  if strip is not None:

    @pl.when((batch == 0) & first)
    def _():
      _spread(refs["line"], strip)
      d_strip[...] = zero(d_strip)

  @pl.when(q == 0)
  def _():
    dk[...], dv[...] = zero(dk), zero(dv)
    if "d_row" in refs:
      refs["d_row_sum"][...] = zero(refs["d_row_sum"])

  @pl.when(k == 0)
  def _():
    dq[:, columns] = jnp.zeros((dq.shape[0], grid.block_q), jnp.float32)
    if "d_column" in refs:
      refs["d_column"][0, 0, :, columns] = jnp.zeros((1, grid.block_q), jnp.float32)

  def tile(masked):
    s_WQ, capped = _scores(call, grid, at, refs, strip, masked)
    do_FQ, v_FW = refs["do"][0, 0], refs["v"][0, 0]
    p_WQ = jnp.exp(s_WQ - refs["lse"][0, 0])
    dv[...] += _dot(call, do_FQ, p_WQ.astype(do_FQ.dtype), NT)
    ds_WQ = p_WQ * (_dot(call, v_FW, do_FQ, TN) - refs["delta"][0, 0])
    if strip is not None:
      d_strip[:, _at(grid.distance(q, k) - grid.distances[0], grid.block_q)] += ds_WQ
    if "d_row" in refs:
      refs["d_row_sum"][...] += functools.reduce(
        jnp.add, (ds_WQ[:, c : c + LANES] for c in range(0, grid.block_q, LANES))
      )
    if "d_column" in refs:
      refs["d_column"][0, 0, :, columns] += jnp.sum(ds_WQ, 0, keepdims=True)
    if capped is not None:
      ds_WQ *= 1 - capped * capped
    q_HQ, k_HW = refs["q"][0, 0], refs["k"][0, 0]
    ds_WQ = ds_WQ.astype(q_HQ.dtype)
    dk[...] += _dot(call, q_HQ, ds_WQ, NT)
    dq[:, columns] += _dot(call, k_HW, ds_WQ, NN)

  _for_live(grid, at, tile)

  @pl.when(q == grid.num_q - 1)
  def _():
    refs["dk"][0, 0] = (dk[...] * rule.scale).astype(refs["dk"].dtype)
    refs["dv"][0, 0] = dv[...].astype(refs["dv"].dtype)
    if "d_row" in refs:
      refs["d_row"][0, 0] = -jnp.sum(refs["d_row_sum"][...].T, 0, keepdims=True)

  @pl.when(k == grid.num_k - 1)
  def _():
    refs["dq"][0, 0, :, columns] = (dq[:, columns] * rule.scale).astype(refs["dq"].dtype)

  if strip is not None:
    pl.when((batch == pl.num_programs(1) - 1) & last)(lambda: _gather(d_strip, refs["d_line"]))


class _Operand(NamedTuple):
  """An argument or result with its block and its index map over (head, batch, q tile, k tile)."""

  array: Any
  block: tuple
  index: Any


def _run(
  body, call: Call, grid: Tiles, name: str, order: tuple, ins: dict, outs: dict, scratch: dict, cost
):
  """One pallas_call over (heads, batch, two axes of tiles in the order given); results by name."""
  ins = {key: operand for key, operand in ins.items() if operand is not None}
  outs = {key: operand for key, operand in outs.items() if operand is not None}
  scratch = {key: shape for key, shape in scratch.items() if shape is not None}
  B, N = ins["q"].array.shape[:2]
  names = (*ins, *outs, *scratch)

  def index(f):
    return lambda n, b, x, y: f(n, b, *((x, y) if order == ("q", "k") else (y, x)))

  def spec(operand):
    return pl.BlockSpec(operand.block, index(operand.index))

  steps = {"q": grid.num_q, "k": grid.num_k}
  results = pl.pallas_call(
    lambda *refs: body(call, grid, dict(zip(names, refs))),
    grid=(N, B, *(steps[axis] for axis in order)),
    in_specs=[spec(operand) for operand in ins.values()],
    out_specs=[spec(operand) for operand in outs.values()],
    out_shape=[operand.array for operand in outs.values()],
    scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
    cost_estimate=cost,
    name=name,
    # A strip is built with a head's first row of the batch and lasts for the others.
    **on_tpu(
      "parallel", "arbitrary" if "strip" in scratch else "parallel", "arbitrary", "arbitrary"
    ),
  )(*(operand.array for operand in ins.values()))
  return dict(zip(outs, results))


def _inputs(grid: Tiles, x: Operands, keys, queries) -> dict:
  """The arguments that both directions read. keys, queries: index of the block to fetch at a tile
  (q, k).
  """
  group = x.q.shape[1] // x.k.shape[1]

  def key_side(array, head):
    return (
      None
      if array is None
      else _Operand(
        array, (1, 1, array.shape[2], grid.block_k), lambda n, b, q, k: (b, head(n), 0, keys(q, k))
      )
    )

  def query_side(array, head):
    return (
      None
      if array is None
      else _Operand(
        array,
        (1, 1, array.shape[2], grid.block_q),
        lambda n, b, q, k: (b, head(n), 0, queries(q, k)),
      )
    )

  def own(array):
    return lambda n: n if array is not None and array.shape[1] > 1 else 0

  def segment(array, size, at):
    return (
      None if array is None else _Operand(array, (1, 1, size), lambda n, b, q, k: (b, 0, at(q, k)))
    )

  return dict(
    q=query_side(x.q, lambda n: n),
    k=key_side(x.k, lambda n: n // group),
    v=key_side(x.v, lambda n: n // group),
    line=None
    if x.line is None
    else _Operand(x.line, (1, *x.line.shape[1:]), lambda n, b, q, k: (n, 0, 0)),
    row=key_side(x.row, own(x.row)),
    column=query_side(x.column, own(x.column)),
    q_segment=segment(x.q_segment, grid.block_q, queries),
    k_segment=segment(x.k_segment, grid.block_k, keys),
  )


def _cost(call: Call, grid: Tiles, x: Operands, products: int) -> pl.CostEstimate:
  B, N, H, _ = x.q.shape
  F = x.v.shape[2]
  live = sum(bool(grid.is_live(q, k)) for q in range(grid.num_q) for k in range(grid.num_k))
  pairs = B * N * live * grid.block_q * grid.block_k

  def size(array):
    return array.size * array.dtype.itemsize

  moved = (
    sum(size(array) for array in x if array is not None) + B * N * F * grid.T * x.q.dtype.itemsize
  )
  return pl.CostEstimate(
    flops=pairs * products * (H + F), transcendentals=pairs, bytes_accessed=moved
  )


def forward(call: Call, x: Operands):
  """(o_BNFT in q's dtype, lse_BN1T float32)."""
  grid = call.forward
  B, N, H, T = x.q.shape
  F = x.v.shape[2]

  def queries(rows):
    return (1, 1, rows, grid.block_q)

  def index(n, b, q, k):
    return (b, n, 0, q)

  out = _run(
    _forward_body,
    call,
    grid,
    "attention_forward",
    ("q", "k"),
    _inputs(grid, x, grid.keys_of, lambda q, k: q),
    dict(
      o=_Operand(jax.ShapeDtypeStruct((B, N, F, T), x.q.dtype), queries(F), index),
      lse=_Operand(jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32), queries(1), index),
    ),
    dict(
      m=(1, grid.block_q),
      l=(1, grid.block_q),
      acc=(F, grid.block_q),
      strip=None if x.line is None else (grid.block_k, x.line.shape[2]),
    ),
    _cost(call, grid, x, 2),
  )
  return out["o"], out["lse"]


def backward(call: Call, x: Operands, do_BNFT, lse_BN1T, delta_BN1T) -> dict:
  """Gradients by name: dq_BNHT; dk_BNHS, dv_BNFS per *query* head; d_line_N1R, d_row_BN1S,
  d_column_BN1T where there is one.

  Those per query head are float32 if several share a key and value head, and are to be summed.
  """
  grid = call.backward
  B, N, H, T = x.q.shape
  S, F = x.k.shape[3], x.v.shape[2]

  def of_query(array):
    return _Operand(
      array,
      (1, 1, array.shape[2], grid.block_q),
      lambda n, b, q, k: (b, n, 0, grid.queries_of(q, k)),
    )

  def whole(rows, dtype):
    return _Operand(
      jax.ShapeDtypeStruct((B, N, rows, T), dtype), (1, 1, rows, T), lambda n, b, q, k: (b, n, 0, 0)
    )

  def of_key(rows, dtype):
    return _Operand(
      jax.ShapeDtypeStruct((B, N, rows, S), dtype),
      (1, 1, rows, grid.block_k),
      lambda n, b, q, k: (b, n, 0, k),
    )

  kv_dtype = x.k.dtype if x.k.shape[1] == N else jnp.float32
  strip = None if x.line is None else (grid.block_k, x.line.shape[2])
  ins = _inputs(grid, x, lambda q, k: k, grid.queries_of)
  return _run(
    _backward_body,
    call,
    grid,
    "attention_backward",
    ("k", "q"),
    dict(ins, do=of_query(do_BNFT), lse=of_query(lse_BN1T), delta=of_query(delta_BN1T)),
    dict(
      dq=whole(H, x.q.dtype),
      dk=of_key(H, kv_dtype),
      dv=of_key(F, kv_dtype),
      d_line=None
      if x.line is None
      else _Operand(
        jax.ShapeDtypeStruct(x.line.shape, jnp.float32),
        (1, *x.line.shape[1:]),
        lambda n, b, q, k: (n, 0, 0),
      ),
      d_row=None if x.row is None else of_key(1, jnp.float32),
      d_column=None if x.column is None else whole(1, jnp.float32),
    ),
    dict(
      dk_sum=(H, grid.block_k),
      dv_sum=(F, grid.block_k),
      dq_sum=(H, T),
      d_row_sum=None if x.row is None else (grid.block_k, LANES),
      strip=strip,
      d_strip=strip,
    ),
    _cost(call, grid, x, 5),
  )
