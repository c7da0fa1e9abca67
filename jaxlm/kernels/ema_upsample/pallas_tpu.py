"""Smoothing and gathering as two TPU kernels: smoothed chunks exist on chip only.

Axes: B batch, T position, C chunks (slots), D d_model; Q positions and S slots of a tile, W channels
of a tile; 8 rows of numbers per slot.

A kernel follows the path of `compact.paths` through tiles of positions and slots. Entering a tile of
slots it smooths it from what the tile before left; in each step the positions of one tile read the
slots of one tile, which is a product with a 0/1 matrix. The backward kernel goes back along the path,
adds up what the readers of each slot send (the transposed product), and leaving a tile of slots goes
back through its recurrence:

  z_j = p_j x_j + d_j z_{j-1},  y_t = z_{rank_t}
  S_j = sum_{rank_t = j} dy_t,  H_j = S_j + d_{j+1} H_{j+1}
  dx_j = p_j H_j,  dp_j = sum H_j x_j,  dd_j = sum H_j z_{j-1}

Within a tile both recurrences are doubled seven times, h_j += D_j h_{j-k}, with products of decays
themselves: a decay of 0 breaks exactly, and no logarithm is taken.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels.compact import blocks
from jaxlm.kernels.compact.blocks import POSITIONS, SLOTS
from jaxlm.kernels.compact.pallas_tpu import among_slots, as_columns, exact_product, whole_rows
from jaxlm.kernels.compact.paths import num_steps, path
from jaxlm.kernels.pallas_support import on_tpu, round_up, vmem_bytes, why_not_here
from jaxlm.kernels.platform import target_device_kind

P, DECAY, BEFORE = 0, 1, 2  # columns of numbers per slot


def supports(x, spec=None) -> str | None:
  """None, or the sentence that says why not. x (B, C, D): anything with shape and dtype."""
  reason = why_not_here()
  if reason is not None:
    return reason
  if jax.sharding.get_abstract_mesh().size > 1 and spec is None:
    return "the compiler does not partition it: under a mesh of several devices pass spec, x's PartitionSpec"
  if x.dtype not in (jnp.float32, jnp.bfloat16):
    return f"x is {x.dtype}; it wants float32 or bfloat16"
  width = blocks.channels(x.shape[2])
  if width is None:
    return f'd_model {x.shape[2]} is not a multiple of 128; use implementation="xla"'
  need, most = blocks.vmem_bytes(width, 4), vmem_bytes(target_device_kind())
  if need > most:
    return f'd_model {x.shape[2]} needs {need >> 20} MiB on chip, of {most >> 20}; use implementation="xla"'
  return whole_rows(x, spec)


class Sizes(NamedTuple):
  """The static side of a call, padded."""

  B: int
  T: int
  C: int
  D: int
  width: int

  @property
  def tiles(self) -> tuple[int, int]:
    return self.T // POSITIONS, self.C // SLOTS

  @property
  def steps(self) -> int:
    return num_steps(*self.tiles)


def _down(x_SW, k: int, fill):
  """Row j gets row j - k; the first k rows get `fill`."""
  row = jax.lax.broadcasted_iota(jnp.int32, x_SW.shape, 0)
  return jnp.where(row >= k, pltpu.roll(x_SW, k, 0), fill)


def _up(x_SW, k: int, fill):
  row = jax.lax.broadcasted_iota(jnp.int32, x_SW.shape, 0)
  return jnp.where(row < SLOTS - k, pltpu.roll(x_SW, SLOTS - k, 0), fill)


def _recur(h_SW, decay_SL, shift):
  """(h_j = h_j + d_j h_{j-1} from zero, product of the decays up to j); shift: _down or _up."""
  through_SL, k = decay_SL, 1
  while k < SLOTS:
    window_SL = decay_SL
    h_SW = h_SW + window_SL[:, :1] * shift(h_SW, k, 0.0)
    decay_SL = window_SL * shift(window_SL, k, 0.0)
    through_SL = through_SL * shift(through_SL, k, 1.0)
    k *= 2
  return h_SW, through_SL


def _lanes(column_S1):
  return jnp.broadcast_to(column_S1, (SLOTS, 128))


def _smoothed(x_SW, number_S8, carry_1W):
  """z of a tile of slots."""
  h_SW = number_S8[:, P : P + 1] * x_SW.astype(jnp.float32)
  h_SW, through_SL = _recur(h_SW, _lanes(number_S8[:, DECAY : DECAY + 1]), _down)
  return h_SW + through_SL[:, :1] * carry_1W


def _at(refs, step, count: int):
  """(position tile, slot tile, the slot tiles of the steps before and after, -1 where there is none)."""
  b = pl.program_id(0)
  here = b * count + step
  slot = refs["slot"]
  before = jnp.where(step > 0, slot[jnp.maximum(here - 1, 0)], -1)
  after = jnp.where(
    step < count - 1, slot[jnp.minimum(here + 1, pl.num_programs(0) * count - 1)], -1
  )
  return refs["position"][here], slot[here], before, after


def _forward_body(sizes: Sizes, refs: dict):
  step, last = pl.program_id(2), sizes.steps - 1
  o, i, before, _ = _at(refs, step, sizes.steps)
  old = jnp.where(
    step > 0, refs["position"][pl.program_id(0) * sizes.steps + jnp.maximum(step - 1, 0)], -1
  )
  z, carry = refs["z"], refs["carry"]

  @pl.when(step == 0)
  def _():
    carry[...] = refs["initial"][0]

  @pl.when(i != before)
  def _():
    refs["carries"][0, 0] = carry[...]
    z[...] = _smoothed(refs["x"][0], as_columns(refs["number"][0]), carry[...])
    carry[...] = z[SLOTS - 1 :]

  rank_Q8 = as_columns(jnp.broadcast_to(refs["rank"][0], (8, POSITIONS)))
  column_Q1 = rank_Q8[:, :1]

  @pl.when(o != old)
  def _():
    refs["y"][0] = jnp.where(column_Q1 < 0, refs["initial"][0], 0.0)

  reads_QS = among_slots(column_Q1, i * SLOTS, 1)
  refs["y"][0] += exact_product(reads_QS, z[...], ((1,), (0,)))

  @pl.when(step == last)
  def _():
    refs["last"][0] = carry[...]


def _backward_body(sizes: Sizes, refs: dict):
  back, last = pl.program_id(2), sizes.steps - 1
  step = last - back
  _, i, before, after = _at(refs, step, sizes.steps)
  total, carry = refs["total"], refs["carry"]
  dy_QW, rank_1Q = refs["dy"][0], refs["rank"][0]

  @pl.when(back == 0)
  def _():
    carry[...] = refs["d_last"][0]
    refs["d_initial"][0] = jnp.zeros(refs["d_initial"].shape[1:], jnp.float32)

  @pl.when(i != after)
  def _():
    total[...] = jnp.zeros(total.shape, jnp.float32)

  total[...] += exact_product(among_slots(rank_1Q, i * SLOTS, 0), dy_QW, ((1,), (0,)))

  # A tile of positions is met once with each slot tile; who reads the initial value is counted with
  # its first one.
  first = (step == 0) | (
    refs["position"][pl.program_id(0) * sizes.steps + jnp.maximum(step - 1, 0)]
    != refs["position"][pl.program_id(0) * sizes.steps + step]
  )

  @pl.when(first)
  def _():
    outside_8Q = jnp.where(jnp.broadcast_to(rank_1Q, (8, POSITIONS)) < 0, 1.0, 0.0)
    refs["d_initial"][0] += exact_product(outside_8Q.astype(jnp.bfloat16), dy_QW, ((1,), (0,)))[:1]

  @pl.when(i != before)
  def _():
    number_S8 = as_columns(refs["number"][0])
    row_S1 = jax.lax.broadcasted_iota(jnp.int32, (SLOTS, 1), 0)
    h_SW = total[...] + jnp.where(row_S1 == SLOTS - 1, carry[...], 0.0)
    decay_SL = _lanes(number_S8[:, DECAY : DECAY + 1])
    h_SW, _ = _recur(h_SW, _up(decay_SL, 1, 0.0), _up)
    x_SW, carried_1W = refs["x"][0].astype(jnp.float32), refs["carries"][0, 0]
    z_SW = _smoothed(x_SW, number_S8, carried_1W)
    row_SW = jax.lax.broadcasted_iota(jnp.int32, z_SW.shape, 0)
    before_SW = jnp.where(row_SW >= 1, pltpu.roll(z_SW, 1, 0), carried_1W)
    refs["d_x"][0] = (number_S8[:, P : P + 1] * h_SW).astype(refs["d_x"].dtype)
    columns = [jnp.sum(h_SW * v, 1, keepdims=True) for v in (x_SW, before_SW)]
    of = jax.lax.broadcasted_iota(jnp.int32, (SLOTS, 128), 1)
    both_SL = jnp.where(of == P, columns[0], jnp.where(of == DECAY, columns[1], 0.0))
    refs["d_number"][0, 0] = both_SL.T[:8]
    carry[...] = decay_SL[:1, :1] * h_SW[:1]

  @pl.when(back == last)
  def _():
    refs["d_initial"][0] += carry[...]


def cost(sizes: Sizes, itemsize: int, backward: bool) -> pl.CostEstimate:
  """Bytes: x and its gradient, y or its gradient once."""
  B, T, C, D, _ = sizes
  products = 2 * 3 * B * sizes.steps * POSITIONS * SLOTS * D
  return pl.CostEstimate(
    flops=products + 4 * 7 * B * C * D * (2 if backward else 1),
    transcendentals=0,
    bytes_accessed=B * D * (4 * T + itemsize * C * (2 if backward else 1)),
  )


def _call(
  body, sizes: Sizes, name, scalars: dict, ins: dict, outs: dict, scratch: dict, cost, back
):
  """One pallas_call over (batch, tiles of channels, steps of the path). Kinds of ins and outs:
  "position" and "slot" (tiles of rows), "rank" and "number" (tiles of numbers), "edge" (B, 1, D),
  "carries" (B, I, 1, D), "sums" (B, tiles of channels, 8, C)."""
  B, _, _, D, W = sizes
  last = sizes.steps - 1

  def at(which, b, s, position, slot):
    return (position if which == "position" else slot)[b * sizes.steps + (last - s if back else s)]

  def spec(kind):
    def of(which, block, place):
      return pl.BlockSpec(block, lambda b, w, s, *path: place(b, w, at(which, b, s, *path)))

    return {
      "position": of("position", (1, POSITIONS, W), lambda b, w, t: (b, t, w)),
      "slot": of("slot", (1, SLOTS, W), lambda b, w, t: (b, t, w)),
      "rank": of("position", (1, 1, POSITIONS), lambda b, w, t: (b, 0, t)),
      "number": of("slot", (1, 8, SLOTS), lambda b, w, t: (b, 0, t)),
      "edge": of("slot", (1, 1, W), lambda b, w, t: (b, 0, w)),
      "carries": of("slot", (1, 1, 1, W), lambda b, w, t: (b, t, 0, w)),
      "sums": of("slot", (1, 1, 8, SLOTS), lambda b, w, t: (b, w, 0, t)),
    }[kind]

  names = (*scalars, *ins, *outs, *scratch)
  out = pl.pallas_call(
    lambda *refs: body(sizes, dict(zip(names, refs))),
    name=name,
    out_shape=[array for array, _ in outs.values()],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=(B, D // W, sizes.steps),
      in_specs=[spec(kind) for _, kind in ins.values()],
      out_specs=[spec(kind) for _, kind in outs.values()],
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
    ),
    cost_estimate=cost,
    **on_tpu("parallel", "parallel", "arbitrary"),
  )(*scalars.values(), *(array for array, _ in ins.values()))
  return dict(zip(outs, out))


def _struct(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def forward(sizes: Sizes, scalars, x_BCD, number_B8C, rank_B1T, initial_B1D):
  """(y_BTD, carries before every tile of slots (B, I, 1, D), last_B1D), float32."""
  B, T, _, D, W = sizes
  out = _call(
    _forward_body,
    sizes,
    "ema_upsample_forward",
    scalars,
    dict(
      x=(x_BCD, "slot"),
      number=(number_B8C, "number"),
      rank=(rank_B1T, "rank"),
      initial=(initial_B1D, "edge"),
    ),
    dict(
      y=(_struct(B, T, D), "position"),
      carries=(_struct(B, sizes.tiles[1], 1, D), "carries"),
      last=(_struct(B, 1, D), "edge"),
    ),
    dict(z=(SLOTS, W), carry=(1, W)),
    cost(sizes, x_BCD.dtype.itemsize, False),
    False,
  )
  return out["y"], out["carries"], out["last"]


def backward(sizes: Sizes, scalars, x_BCD, number_B8C, rank_B1T, carries, dy_BTD, d_last_B1D):
  """(dx_BCD, d_number_B8C, d_initial_B1D)."""
  B, _, C, D, W = sizes
  out = _call(
    _backward_body,
    sizes,
    "ema_upsample_backward",
    scalars,
    dict(
      x=(x_BCD, "slot"),
      number=(number_B8C, "number"),
      rank=(rank_B1T, "rank"),
      carries=(carries, "carries"),
      dy=(dy_BTD, "position"),
      d_last=(d_last_B1D, "edge"),
    ),
    dict(
      d_x=(_struct(*x_BCD.shape, dtype=x_BCD.dtype), "slot"),
      d_number=(_struct(B, D // W, 8, C), "sums"),
      d_initial=(_struct(B, 1, D), "edge"),
    ),
    dict(total=(SLOTS, W), carry=(1, W)),
    cost(sizes, x_BCD.dtype.itemsize, True),
    True,
  )
  return out["d_x"], jnp.sum(out["d_number"], 1), out["d_initial"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _op(sizes, x_BCD, number_B8C, initial_B1D, rank_B1T, scalars):
  return _op_forward(sizes, x_BCD, number_B8C, initial_B1D, rank_B1T, scalars)[0]


def _op_forward(sizes, x_BCD, number_B8C, initial_B1D, rank_B1T, scalars):
  y, carries, last = forward(sizes, scalars, x_BCD, number_B8C, rank_B1T, initial_B1D)
  return (y, last), (x_BCD, number_B8C, rank_B1T, carries, scalars)


def _op_backward(sizes, saved, cotangents):
  x_BCD, number_B8C, rank_B1T, carries, scalars = saved
  dx, d_number, d_initial = backward(
    sizes, scalars, x_BCD, number_B8C, rank_B1T, carries, *cotangents
  )
  return dx, d_number, d_initial, None, None


_op.defvjp(_op_forward, _op_backward)


def ema_upsample(x_BCD, p_BC, decay_BC, initial_BD, rank_BT):
  """As reference.ema_upsample: (y_BTD, last_BD), float32."""
  (B, C, D), T = x_BCD.shape, rank_BT.shape[1]
  sizes = Sizes(B, round_up(T, POSITIONS), round_up(C, SLOTS), D, blocks.channels(D))
  more = sizes.C - C
  # Slots that are not there let everything pass; positions that are not there read a slot that is.
  x_BCD = jnp.pad(x_BCD, ((0, 0), (0, more), (0, 0)))
  number_B8C = jnp.stack(
    [
      jnp.pad(p_BC, ((0, 0), (0, more))),
      jnp.pad(decay_BC, ((0, 0), (0, more)), constant_values=1.0),
    ]
    + [jnp.zeros((B, sizes.C))] * 6,
    axis=1,
  )
  rank_BT = jnp.pad(rank_BT, ((0, 0), (0, sizes.T - T)), mode="edge")
  position_BS, slot_BS = path(rank_BT, POSITIONS, SLOTS, sizes.tiles[1])
  scalars = dict(position=position_BS.reshape(-1), slot=slot_BS.reshape(-1))
  y_BTD, last_B1D = _op(sizes, x_BCD, number_B8C, initial_BD[:, None], rank_BT[:, None], scalars)
  return y_BTD[:, :T], last_B1D[:, 0]
