"""Both projections and the three sums of a cosine as TPU kernels: no projection is written to HBM.

Axes: B batch, T time, D d_model, E the projections' width; t rows and e columns of a tile; L lanes.

  q_t = x_t W_q,  k_t = x_t W_k,  q_{-1} given
  dot_t = q_{t-1} . k_t,  qq_t = q_t . q_t,  kk_t = k_t . k_t

The grid is (batch, tiles of rows, tiles of columns). A tile of rows stays on chip while the columns
pass; the last row of q is kept for the next tile, and written, so that the backward kernel has it.
With cotangents a_t of dot, b_t of qq and c_t of kk:

  dq_t = a_{t+1} k_{t+1} + 2 b_t q_t,  dk_t = a_t q_{t-1} + 2 c_t k_t
  dx_t = dq_t W_q' + dk_t W_k',  dq_{-1} = a_0 k_0

The backward kernel goes from the last tile of rows to the first, computes q and k once more, and
writes dx and, in x's dtype, dq and dk. The weights' gradients are two products of XLA's.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels.compact.pallas_tpu import whole_rows
from jaxlm.kernels.pallas_support import (
  LANES,
  dot,
  on_tpu,
  round_up,
  vmem_bytes,
  why_not_here,
)
from jaxlm.kernels.platform import target_device_kind
from jaxlm.kernels.route import blocks

DOT, QQ, KK = 0, 1, 2  # rows of the sums, and of their cotangents
SUMS = 8  # rows that a tile of numbers has


def supports(x, spec=None) -> str | None:
  """None, or the sentence that says why not. x (B, T, D): anything with shape and dtype."""
  reason = why_not_here()
  if reason is not None:
    return reason
  if jax.sharding.get_abstract_mesh().size > 1 and spec is None:
    return "the compiler does not partition it: under a mesh of several devices pass spec, x's PartitionSpec"
  if x.dtype not in (jnp.float32, jnp.bfloat16):
    return f"x is {x.dtype}; it wants float32 or bfloat16"
  T, D = x.shape[1:]
  if D % LANES:
    return f'd_model {D} is not a multiple of {LANES}; use implementation="xla"'
  most = vmem_bytes(target_device_kind())
  if blocks.tiles(T, D, most, D, x.dtype.itemsize) is None:
    need = blocks.vmem_bytes(LANES, LANES, D, x.dtype.itemsize)
    return f'd_model {D} needs {need >> 20} MiB on chip, of {most >> 20}; use implementation="xla"'
  return whole_rows(x, spec)


class Sizes(NamedTuple):
  """The static side of a call. T is padded to whole tiles of rows."""

  B: int
  T: int
  D: int
  E: int
  rows: int
  columns: int

  @property
  def grid(self) -> tuple[int, int, int]:
    return self.B, self.T // self.rows, self.E // self.columns


def _after(first_1e, v_te):
  """Row t gets row t - 1; row 0 gets first."""
  row_te = jax.lax.broadcasted_iota(jnp.int32, v_te.shape, 0)
  return jnp.where(row_te == 0, first_1e, pltpu.roll(v_te, 1, 0))


def _before(v_te, last_1e):
  """Row t gets row t + 1; the last row gets last."""
  rows = v_te.shape[0]
  row_te = jax.lax.broadcasted_iota(jnp.int32, v_te.shape, 0)
  return jnp.where(row_te == rows - 1, last_1e, pltpu.roll(v_te, rows - 1, 0))


def _forward_body(x, w_q, w_k, first, sums, carries, carry, total):
  t, e = pl.program_id(1), pl.program_id(2)
  q_te, k_te = (dot(x[0], w[...], (1, 0)) for w in (w_q, w_k))
  before_1e = jnp.where(t == 0, first[0], carry[e])
  carries[0, 0] = before_1e
  carry[e] = q_te[-1:]

  @pl.when(e == 0)
  def _():
    total[...] = jnp.zeros(total.shape, jnp.float32)

  lane_tL = jax.lax.broadcasted_iota(jnp.int32, total.shape, 1)
  products = {DOT: _after(before_1e, q_te) * k_te, QQ: q_te * q_te, KK: k_te * k_te}
  for lane, product_te in products.items():
    total[...] += jnp.where(lane_tL == lane, jnp.sum(product_te, 1, keepdims=True), 0.0)

  @pl.when(e == pl.num_programs(2) - 1)
  def _():
    sums[0] = total[...].T[:SUMS]


def _backward_body(x, w_q, w_k, carries, numbers, dx, dq, dk, d_first, carry, total):
  back, e = pl.program_id(1), pl.program_id(2)
  q_te, k_te = (dot(x[0], w[...], (1, 0)) for w in (w_q, w_k))
  # A row of numbers per lane becomes a column per row; its upper rows are not there.
  a_t1, b_t1, c_t1 = (numbers[0].T[:, i : i + 1] for i in (DOT, QQ, KK))
  next_1e = jnp.where(back == 0, 0.0, carry[e])
  weighed_te = a_t1 * k_te  # what a row sends to the q before it
  carry[e] = weighed_te[:1]
  d_first[0] = weighed_te[:1]  # that of the first tile is the last one written
  dtype = x.dtype
  dq_te = (_before(weighed_te, next_1e) + 2 * b_t1 * q_te).astype(dtype)
  dk_te = (a_t1 * _after(carries[0, 0], q_te) + 2 * c_t1 * k_te).astype(dtype)
  dq[0], dk[0] = dq_te, dk_te

  @pl.when(e == 0)
  def _():
    total[...] = jnp.zeros(total.shape, jnp.float32)

  total[...] += dot(dq_te, w_q[...], (1, 1)) + dot(dk_te, w_k[...], (1, 1))

  @pl.when(e == pl.num_programs(2) - 1)
  def _():
    dx[0] = total[...].astype(dtype)


def cost(sizes: Sizes, itemsize: int, backward: bool) -> pl.CostEstimate:
  """Rows are fetched once, the weights once per tile of rows."""
  B, tiles, _ = sizes.grid
  T, D, E = sizes.T, sizes.D, sizes.E
  moved = itemsize * (B * T * D + B * tiles * 2 * D * E) + 4 * B * (SUMS * T + tiles * E)
  if backward:
    moved += itemsize * B * T * (D + 2 * E)
  return pl.CostEstimate(
    flops=4 * B * T * D * E * (2 if backward else 1), transcendentals=0, bytes_accessed=moved
  )


def _call(body, sizes: Sizes, name, ins, outs, wide, dtype, backward):
  """ins and outs: (array or shape, kind). Kinds: "rows" (B, T, D), "tile" (B, T, E), "weights" (D, E),
  "first" (B, 1, E), "carries" (B, tiles, 1, E), "numbers" (B, 8, T)."""
  B, T, D, E, rows, columns = sizes
  last = sizes.grid[1] - 1

  def row(t):
    return last - t if backward else t

  specs = {
    "rows": pl.BlockSpec((1, rows, D), lambda b, t, e: (b, row(t), 0)),
    "tile": pl.BlockSpec((1, rows, columns), lambda b, t, e: (b, row(t), e)),
    "weights": pl.BlockSpec((D, columns), lambda b, t, e: (0, e)),
    "first": pl.BlockSpec((1, 1, columns), lambda b, t, e: (b, 0, e)),
    "carries": pl.BlockSpec((1, 1, 1, columns), lambda b, t, e: (b, row(t), 0, e)),
    "numbers": pl.BlockSpec((1, SUMS, rows), lambda b, t, e: (b, 0, row(t))),
  }
  return pl.pallas_call(
    body,
    name=name,
    grid=sizes.grid,
    in_specs=[specs[kind] for _, kind in ins],
    out_specs=[specs[kind] for _, kind in outs],
    out_shape=[array for array, _ in outs],
    scratch_shapes=[
      pltpu.VMEM((sizes.grid[2], 1, columns), jnp.float32),
      pltpu.VMEM((rows, wide), jnp.float32),
    ],
    cost_estimate=cost(sizes, jnp.dtype(dtype).itemsize, backward),
    **on_tpu("parallel", "arbitrary", "arbitrary"),
  )(*(array for array, _ in ins))


def _struct(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def forward(sizes: Sizes, x_BTD, w_q_DE, w_k_DE, first_B1E):
  """(sums_B8T: dot, qq and kk in its first rows; q before every tile of rows (B, tiles, 1, E)), float32."""
  B, T, _, E, *_ = sizes
  return _call(
    _forward_body,
    sizes,
    "route_forward",
    [(x_BTD, "rows"), (w_q_DE, "weights"), (w_k_DE, "weights"), (first_B1E, "first")],
    [(_struct(B, SUMS, T), "numbers"), (_struct(B, sizes.grid[1], 1, E), "carries")],
    LANES,
    x_BTD.dtype,
    False,
  )


def backward(sizes: Sizes, x_BTD, w_q_DE, w_k_DE, carries, d_sums_B8T):
  """(dx_BTD, dq_BTE, dk_BTE in x's dtype, d_first_B1E in float32)."""
  B, T, D, E, *_ = sizes
  dtype = x_BTD.dtype
  return _call(
    _backward_body,
    sizes,
    "route_backward",
    [
      (x_BTD, "rows"),
      (w_q_DE, "weights"),
      (w_k_DE, "weights"),
      (carries, "carries"),
      (d_sums_B8T, "numbers"),
    ],
    [
      (_struct(B, T, D, dtype=dtype), "rows"),
      (_struct(B, T, E, dtype=dtype), "tile"),
      (_struct(B, T, E, dtype=dtype), "tile"),
      (_struct(B, 1, E), "first"),
    ],
    D,
    dtype,
    True,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _op(sizes, x_BTD, w_q_DE, w_k_DE, first_B1E):
  return forward(sizes, x_BTD, w_q_DE, w_k_DE, first_B1E)[0]


def _op_forward(sizes, x_BTD, w_q_DE, w_k_DE, first_B1E):
  sums, carries = forward(sizes, x_BTD, w_q_DE, w_k_DE, first_B1E)
  return sums, (x_BTD, w_q_DE, w_k_DE, carries)


def _op_backward(sizes, saved, d_sums_B8T):
  x_BTD, w_q_DE, w_k_DE, carries = saved
  dx, dq, dk, d_first = backward(sizes, x_BTD, w_q_DE, w_k_DE, carries, d_sums_B8T)
  dw_q, dw_k = (
    jnp.einsum("btd,bte->de", x_BTD, d, preferred_element_type=jnp.float32).astype(w.dtype)
    for d, w in ((dq, w_q_DE), (dk, w_k_DE))
  )
  return dx, dw_q, dw_k, d_first


_op.defvjp(_op_forward, _op_backward)


def cosine(first_BD, x_BTD, w_q_DE, w_k_DE):
  """As xla.cosine. first_BD: the row before x_0. Float32."""
  B, T, D = x_BTD.shape
  E, itemsize = w_q_DE.shape[1], x_BTD.dtype.itemsize
  rows, columns = blocks.tiles(T, E, vmem_bytes(target_device_kind()), D, itemsize)
  sizes = Sizes(B, round_up(T, rows), D, E, rows, columns)
  w_q_DE, w_k_DE = (w.astype(x_BTD.dtype) for w in (w_q_DE, w_k_DE))
  first_B1E = jnp.einsum(
    "btd,de->bte", first_BD[:, None], w_q_DE, preferred_element_type=jnp.float32
  )
  padded_BTD = jnp.pad(x_BTD, ((0, 0), (0, sizes.T - T), (0, 0)))
  sums_B8T = _op(sizes, padded_BTD, w_q_DE, w_k_DE, first_B1E)[:, :, :T]
  dot_BT, qq_BT, kk_BT = (sums_B8T[:, i] for i in (DOT, QQ, KK))
  qq_BT = jnp.concatenate([jnp.sum(first_B1E * first_B1E, -1), qq_BT[:, :-1]], axis=1)

  # Divided one after the other, as in xla.py: the square of a product of two norms of 1e-12 is
  # zero in float32.
  def norm(square_BT):
    return jnp.sqrt(jnp.maximum(square_BT, 1e-24))

  return dot_BT / norm(qq_BT) / norm(kk_BT)
