"""Log softmax of h w^T as two TPU kernels: logits exist as one tile on chip, forward and backward.

Axes: N rows, D d_model, V vocabulary; Q rows of a tile, W words of a tile.

With p = exp(s - log_z), y the target, c = 1 - (s / softcap)^2 (1 without), g and z the gradients of
log_prob and log_z:
  da_v = c_v (z - g) p_v  for v != y,   da_y = c_y (z p_y + g (1 - p_y)),   1 - p_y =
  -expm1(log_prob) dh = da w = da_y w_y + (z - g) r,     r = sum_{v != y} p_v c_v w_v,       dw =
  da^T h.
r does not depend on g and z, so the forward kernel sums it along with log_z, as attention sums its
values: the backward kernel computes the logits once more, for dw alone. The target stands apart
because 1 - p_y is lost in a sum with rounded terms: a sure prediction would have no gradient.

Rows from `count` on are neither computed nor differentiated: their time is that of an empty grid
step.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels import pallas_support
from jaxlm.kernels.linear_cross_entropy.blocks import Tiles
from jaxlm.kernels.pallas_support import LANES, dot, round_up

LOWEST = -1e30  # in place of -inf, whose difference from itself is not a number


def supports(dtype, w_dtype, D: int, device_kind: str, tiles: Tiles) -> str | None:
  """None, or the sentence that says why not. tiles: block sizes that would be used."""
  reason = pallas_support.why_not_here()
  if reason is not None:
    return reason
  if dtype != w_dtype or dtype not in (jnp.float32, jnp.bfloat16):
    return f"h is {dtype} and w {w_dtype}; its products take two float32 or two bfloat16 arrays"
  size, room = jnp.dtype(dtype).itemsize, pallas_support.vmem_bytes(device_kind)
  needed = max(tiles.forward_bytes(D, size), tiles.backward_bytes(D, size))
  if needed > room:
    return f'd_model {D} needs {needed >> 20} MiB on chip, {device_kind} gives {room >> 20}; use implementation="xla"'
  return None


def _capped(a, softcap):
  """(s, c)"""
  if softcap is None:
    return a, None
  t = jnp.tanh(a / softcap)
  return softcap * t, 1 - t * t


def _lanes(x_QL, width: int):
  """Rows whose lanes are all equal, as wide as wanted."""
  return jnp.broadcast_to(x_QL[:, :1], (x_QL.shape[0], width))


def _add_lanes(total_QL, x_QW):
  """total + x, summed over groups of 128 lanes; what is left over goes to the first lanes."""
  for start in range(0, x_QW.shape[1], LANES):
    piece = x_QW[:, start : start + LANES]
    if piece.shape[1] < LANES:
      piece = jnp.concatenate(
        [piece, jnp.zeros((piece.shape[0], LANES - piece.shape[1]), piece.dtype)], 1
      )
    total_QL = total_QL + piece
  return total_QL


def _when(always):
  """when(condition) runs what it decorates if `always` (None: true) and the condition hold."""

  def when(condition=None):
    both = [c for c in (always, condition) if c is not None]
    return pl.when(functools.reduce(jnp.logical_and, both)) if both else lambda f: f()

  return when


def _call(kernel, count, args, *, name: str, grid, scratch, in_specs, out_specs, out_shape, cost):
  """pallas_call with `count` in front as a number that index maps read, or without it."""
  known = [] if count is None else [jnp.reshape(count, 1).astype(jnp.int32)]
  return pl.pallas_call(
    kernel,
    out_shape=out_shape,
    name=name,
    cost_estimate=cost,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(known),
      grid=grid,
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=scratch,
    ),
    **pallas_support.on_tpu("parallel", "arbitrary"),
  )(*known, *args)


def forward_cost(
  rows: int, V: int, D: int, itemsize: int, tiles: Tiles, softcap, with_rest: bool
) -> pl.CostEstimate:
  """Bytes: w once per block of rows, h once, r once."""
  return pl.CostEstimate(
    flops=2 * rows * V * D * (2 if with_rest else 1),
    transcendentals=rows * V * (1 if softcap is None else 2),
    bytes_accessed=itemsize * D * (V * pl.cdiv(rows, tiles.rows) + rows * (2 if with_rest else 1)),
  )


def backward_cost(
  rows: int, V: int, D: int, itemsize: int, tiles: Tiles, softcap
) -> pl.CostEstimate:
  """Bytes: h once per block of words, w once, dw once."""
  return pl.CostEstimate(
    flops=4 * rows * V * D,
    transcendentals=rows * V * (1 if softcap is None else 2),
    bytes_accessed=itemsize * D * (2 * V + rows * pl.cdiv(V, tiles.back_words)),
  )


def _blocks_that_count(Q: int):
  """(row_of, counts) for index maps: of rows that do not count nothing is fetched, the block that
  is there stays.
  """

  def row_of(n, *count):
    return jnp.minimum(n, jnp.maximum(pl.cdiv(count[0][0], Q) - 1, 0)) if count else n

  return row_of, lambda n, *count: n * Q < count[0][0]


def _forward_kernel(
  *refs,
  V: int,
  softcap,
  with_count: bool,
  with_bias: bool,
  with_targets: bool,
  with_rest: bool,
  step: int,
):
  refs = list(refs)
  count_1 = refs.pop(0) if with_count else None
  h_ref, w_ref = refs.pop(0), refs.pop(0)
  bias_ref = refs.pop(0) if with_bias else None
  target_ref = refs.pop(0) if with_targets else None
  log_z_ref = refs.pop(0)
  picked_ref = refs.pop(0) if with_targets else None
  rest_ref = refs.pop(0) if with_rest else None
  max_ref, sum_ref = refs.pop(0), refs.pop(0)
  hit_ref, column_ref = (refs.pop(0), refs.pop(0)) if with_targets else (None, None)
  total_ref = refs.pop(0) if with_rest else None
  Q, W = h_ref.shape[0], w_ref.shape[0]
  n, j, last = pl.program_id(0), pl.program_id(1), pl.num_programs(1) - 1
  when = _when(None if count_1 is None else n * Q < count_1[0])

  @when(j == 0)
  def _():
    max_ref[...] = jnp.full(max_ref.shape, LOWEST, jnp.float32)
    sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
    if with_targets:
      hit_ref[...] = jnp.zeros(hit_ref.shape, jnp.float32)
      column_ref[...] = jnp.broadcast_to(target_ref[...], (8, Q)).T[:, :1] + jnp.zeros(
        column_ref.shape, jnp.int32
      )
    if with_rest:
      total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)

  def add(ragged: bool):
    w_WD = w_ref[...]
    if ragged:  # what lies behind the vocabulary may be anything, and 0 x NaN is NaN
      inside_W1 = jax.lax.broadcasted_iota(jnp.int32, (W, 1), 0) < V - j * W
      w_WD = jnp.where(inside_W1, w_WD, jnp.zeros_like(w_WD))

    def logits(start):
      return dot(h_ref[pl.ds(start, step), :], w_WD, (1, 1))

    following_QW = logits(0)
    for start in range(0, Q, step):
      at, a_QW = pl.ds(start, step), following_QW
      if (
        start + step < Q
      ):  # asked for early: the matrix unit works on it while this one's exponentials are taken
        following_QW = logits(start + step)
      if with_bias:
        bias_1W = bias_ref[...].astype(jnp.float32)
        if ragged:
          bias_1W = jnp.where(
            jax.lax.broadcasted_iota(jnp.int32, (1, W), 1) < V - j * W, bias_1W, 0.0
          )
        a_QW = a_QW + bias_1W
      s_QW, slope_QW = _capped(a_QW, softcap)
      word_QW = jax.lax.broadcasted_iota(jnp.int32, (step, W), 1)
      if ragged:
        s_QW = jnp.where(word_QW < V - j * W, s_QW, LOWEST)
      old_QL = max_ref[at, :]
      new_QL = jnp.maximum(old_QL, jnp.max(s_QW, 1, keepdims=True))
      keep_QL = jnp.exp(old_QL - new_QL)
      e_QW = jnp.exp(s_QW - _lanes(new_QL, W))
      max_ref[at, :] = new_QL
      sum_ref[at, :] = _add_lanes(sum_ref[at, :] * keep_QL, e_QW)
      if with_targets:
        hit_QW = word_QW == _lanes(column_ref[at, :] - j * W, W)
        hit_ref[at, :] = _add_lanes(hit_ref[at, :], jnp.where(hit_QW, s_QW, 0.0))
        e_QW = jnp.where(hit_QW, 0.0, e_QW)
      if with_rest:
        if softcap is not None:
          e_QW = e_QW * slope_QW
        total_ref[at, :] = total_ref[at, :] * _lanes(keep_QL, total_ref.shape[1]) + dot(
          e_QW.astype(w_WD.dtype), w_WD, (1, 0)
        )

  if V % W:
    when(j < last)(lambda: add(False))
    when(j == last)(lambda: add(True))
  else:
    when()(lambda: add(False))

  def turned(x_QL):
    return jnp.sum(x_QL.T, 0, keepdims=True)  # (1, Q): rows on lanes

  @when(j == last)
  def _():
    sum_1Q = turned(sum_ref[...])
    log_z_ref[...] = max_ref[...].T[:1] + jnp.log(sum_1Q)
    if with_targets:
      picked_ref[...] = turned(hit_ref[...])
    if with_rest:
      sum_Q1 = jnp.sum(sum_ref[...], 1, keepdims=True)
      rest_ref[...] = (total_ref[...] / sum_Q1).astype(rest_ref.dtype)

  if count_1 is not None:

    @pl.when((n * Q >= count_1[0]) & (j == last))
    def _():
      for ref in (log_z_ref, picked_ref, rest_ref):
        if ref is not None:
          ref[...] = jnp.zeros(ref.shape, ref.dtype)


def forward(h_ND, w_VD, bias_V, target_N, count, *, softcap, tiles: Tiles, with_rest: bool):
  """(log_z_N, s_y (0 without a target among the V words) or None, r_ND in h's dtype or None), 0
  from row `count` on.
  """
  rows, D = h_ND.shape
  V, size = w_VD.shape[0], w_VD.dtype.itemsize
  tiles = tiles.fitted(rows, V)
  Q, W = tiles.rows, tiles.words
  padded, words = round_up(rows, Q), pl.cdiv(V, W)
  h_ND = jnp.pad(h_ND, ((0, padded - rows), (0, 0)))

  def row(x_N):
    return jnp.pad(x_N, (0, padded - rows))[None]

  row_of, counts = _blocks_that_count(Q)

  def word_of(n, j, *count):
    return jnp.where(counts(n, *count), j, words - 1) if count else j

  of_row = pl.BlockSpec((1, Q), lambda n, j, *count: (0, n))
  args = [h_ND, w_VD]
  in_specs = [
    pl.BlockSpec((Q, D), lambda n, j, *count: (row_of(n, *count), 0)),
    pl.BlockSpec((W, D), lambda n, j, *count: (word_of(n, j, *count), 0)),
  ]
  out_specs, out_shape = [of_row], [jax.ShapeDtypeStruct((1, padded), jnp.float32)]
  scratch = [pltpu.VMEM((Q, LANES), jnp.float32)] * 2
  if bias_V is not None:
    args.append(bias_V[None])
    in_specs.append(pl.BlockSpec((1, W), lambda n, j, *count: (0, word_of(n, j, *count))))
  if target_N is not None:
    args.append(row(target_N.astype(jnp.int32)))
    in_specs.append(of_row)
    out_specs.append(of_row)
    out_shape.append(out_shape[0])
    scratch += [pltpu.VMEM((Q, LANES), jnp.float32), pltpu.VMEM((Q, LANES), jnp.int32)]
  if with_rest:
    out_specs.append(pl.BlockSpec((Q, D), lambda n, j, *count: (n, 0)))
    out_shape.append(jax.ShapeDtypeStruct((padded, D), h_ND.dtype))
    scratch.append(pltpu.VMEM((Q, D), jnp.float32))
  kernel = functools.partial(
    _forward_kernel,
    V=V,
    softcap=softcap,
    with_count=count is not None,
    with_bias=bias_V is not None,
    with_targets=target_N is not None,
    with_rest=with_rest,
    step=tiles.step,
  )
  out = list(
    _call(
      kernel,
      count,
      args,
      name="linear_cross_entropy_forward",
      grid=(padded // Q, words),
      scratch=scratch,
      in_specs=in_specs,
      out_specs=out_specs,
      out_shape=out_shape,
      cost=forward_cost(rows, V, D, size, tiles, softcap, with_rest),
    )
  )
  log_z_N = out.pop(0)[0, :rows]
  picked_N = None if target_N is None else out.pop(0)[0, :rows]
  return log_z_N, picked_N, out.pop(0)[:rows] if with_rest else None


def _backward_kernel(
  *refs, softcap, with_count: bool, with_bias: bool, with_targets: bool, step: int
):
  refs = list(refs)
  count_1 = refs.pop(0) if with_count else None
  h_ref, w_ref, row_ref = refs.pop(0), refs.pop(0), refs.pop(0)
  target_ref = refs.pop(0) if with_targets else None
  bias_ref = refs.pop(0) if with_bias else None
  dw_ref = refs.pop(0)
  dbias_ref = refs.pop(0) if with_bias else None
  total_ref = refs.pop(0)
  column_ref, sum_ref = (refs.pop(0), refs.pop(0)) if with_bias else (None, None)
  Q, W = h_ref.shape[0], w_ref.shape[0]
  j, n, last = pl.program_id(0), pl.program_id(1), pl.num_programs(1) - 1

  @pl.when(n == 0)
  def _():
    total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
    if with_bias:
      sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
      column_ref[...] = jnp.broadcast_to(bias_ref[...].astype(jnp.float32), (8, W)).T[
        :, :1
      ] + jnp.zeros(column_ref.shape, jnp.float32)

  @_when(None if count_1 is None else n * Q < count_1[0])()
  def _():
    h_QD = h_ref[...]
    log_z_1Q, of_p_1Q, of_y_1Q = row_ref[0:1], row_ref[1:2], row_ref[2:3]

    def logits(start):
      return dot(w_ref[pl.ds(start, step), :], h_QD, (1, 1))

    following_WQ = logits(0)
    for start in range(0, W, step):
      at, a_WQ = pl.ds(start, step), following_WQ
      if start + step < W:
        following_WQ = logits(start + step)
      if with_bias:
        a_WQ = a_WQ + _lanes(column_ref[at, :], Q)
      s_WQ, slope_WQ = _capped(a_WQ, softcap)
      da_WQ = of_p_1Q * jnp.exp(s_WQ - log_z_1Q)
      if with_targets:
        word_WQ = jax.lax.broadcasted_iota(jnp.int32, (step, Q), 0)
        da_WQ = jnp.where(word_WQ == target_ref[...] - (j * W + start), of_y_1Q, da_WQ)
      if softcap is not None:
        da_WQ = da_WQ * slope_WQ
      total_ref[at, :] += dot(da_WQ.astype(h_QD.dtype), h_QD, (1, 0))
      if with_bias:
        sum_ref[at, :] = _add_lanes(sum_ref[at, :], da_WQ)

  @pl.when(n == last)
  def _():
    dw_ref[...] = total_ref[...].astype(dw_ref.dtype)
    if with_bias:
      dbias_ref[...] = jnp.sum(sum_ref[...].T, 0, keepdims=True)


def backward_w(
  h_ND, w_VD, bias_V, target_N, log_z_N, of_p_N, of_y_N, count, *, softcap, tiles: Tiles, dtype
):
  """(dw_VD in `dtype`, dbias_V float32 or None). of_p = z - g, of_y = z p_y + g (1 - p_y): 0 from
  row `count` on.
  """
  rows, D = h_ND.shape
  V, size = w_VD.shape[0], w_VD.dtype.itemsize
  tiles = tiles.fitted(rows, V)
  Q, W = tiles.back_rows, tiles.back_words
  padded, words = round_up(rows, Q), pl.cdiv(V, W)
  h_ND = jnp.pad(h_ND, ((0, padded - rows), (0, 0)))
  # A row that does not count has no partition, and exp of its logits may be anything: +inf makes it
  # 0.
  log_z_N = jnp.where(of_p_N != 0, log_z_N, jnp.where(of_y_N != 0, log_z_N, jnp.inf))
  row_8N = jnp.zeros((8, padded), jnp.float32).at[0].set(jnp.inf)
  row_8N = row_8N.at[:3, :rows].set(jnp.stack([log_z_N, of_p_N, of_y_N]))
  row_of, _ = _blocks_that_count(Q)
  args = [h_ND, w_VD, row_8N]
  word = pl.BlockSpec((W, D), lambda j, n, *count: (j, 0))
  of_word = pl.BlockSpec((1, W), lambda j, n, *count: (0, j))
  in_specs = [
    pl.BlockSpec((Q, D), lambda j, n, *count: (row_of(n, *count), 0)),
    word,
    pl.BlockSpec((8, Q), lambda j, n, *count: (0, row_of(n, *count))),
  ]
  out_specs, out_shape = [word], [jax.ShapeDtypeStruct((V, D), dtype)]
  scratch = [pltpu.VMEM((W, D), jnp.float32)]
  if target_N is not None:
    args.append(jnp.pad(target_N.astype(jnp.int32), (0, padded - rows))[None])
    in_specs.append(pl.BlockSpec((1, Q), lambda j, n, *count: (0, row_of(n, *count))))
  if bias_V is not None:
    args.append(bias_V[None])
    in_specs.append(of_word)
    out_specs.append(of_word)
    out_shape.append(jax.ShapeDtypeStruct((1, V), jnp.float32))
    scratch += [pltpu.VMEM((W, LANES), jnp.float32)] * 2
  kernel = functools.partial(
    _backward_kernel,
    softcap=softcap,
    with_count=count is not None,
    with_bias=bias_V is not None,
    with_targets=target_N is not None,
    step=tiles.back_step,
  )
  out = _call(
    kernel,
    count,
    args,
    name="linear_cross_entropy_backward",
    grid=(words, padded // Q),
    scratch=scratch,
    in_specs=in_specs,
    out_specs=out_specs,
    out_shape=out_shape,
    cost=backward_cost(rows, V, D, size, tiles, softcap),
  )
  return out[0], None if bias_V is None else out[1][0]
