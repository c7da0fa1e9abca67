"""Moving rows between positions and slots as TPU kernels: products with 0/1 matrices along a path of
tiles.

Axes: B batch, T position, C slot, D channels; Q positions and S slots of a tile, W channels of one.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels.compact import blocks
from jaxlm.kernels.compact.blocks import POSITIONS, SLOTS
from jaxlm.kernels.compact.paths import num_steps, path
from jaxlm.kernels.pallas_support import on_tpu, round_up, vmem_bytes, why_not_here
from jaxlm.kernels.platform import target_device_kind


def as_columns(row_8S):
  """(8, S) to (S, 8)."""
  return row_8S.T


def among_slots(rank, first, axis: int):
  """bfloat16, 1 where a position's rank is a slot of the tile that begins at slot `first`.

  rank: int32 (Q, 1) with slots along axis 1, or (1, Q) with slots along axis 0. 128 slots.
  """
  shape = (rank.shape[0], 128) if axis == 1 else (128, rank.shape[1])
  slot = jax.lax.broadcasted_iota(jnp.int32, shape, axis) + first
  return jnp.where(slot == rank, 1.0, 0.0).astype(jnp.bfloat16)


def exact_product(a, x, contract):
  """a x over axes contract[0] of a and contract[1] of x, float32. a is bfloat16, and what it holds is exact
  there; x float32 (in three bfloat16 parts) or bfloat16."""
  dimensions = (contract, ((), ()))

  def dot(part):
    return jax.lax.dot_general(
      a, part, dimensions, precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32
    )

  if x.dtype == jnp.bfloat16:
    return dot(x)
  high = x.astype(jnp.bfloat16)
  rest = x - high.astype(jnp.float32)
  middle = rest.astype(jnp.bfloat16)
  low = (rest - middle.astype(jnp.float32)).astype(jnp.bfloat16)
  return dot(low) + dot(middle) + dot(high)


class Sizes(NamedTuple):
  """The static side of a call, padded. width: channels of a tile."""

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


def _edges(path_ref, count: int):
  """(tile of this step, whether the step enters it, whether it leaves it)."""
  step, first = pl.program_id(2), pl.program_id(0) * count
  here = path_ref[first + step]
  before = path_ref[first + jnp.maximum(step - 1, 0)]
  after = path_ref[first + jnp.minimum(step + 1, count - 1)]
  return here, (step == 0) | (before != here), (step == count - 1) | (after != here)


def _body(sizes: Sizes, to_slots: bool, position_ref, slot_ref, x_ref, rank_ref, out_ref, total):
  _, enters, leaves = _edges(slot_ref if to_slots else position_ref, sizes.steps)
  slot = slot_ref[pl.program_id(0) * sizes.steps + pl.program_id(2)]
  rank_1Q = rank_ref[0]

  @pl.when(enters)
  def _():
    total[...] = jnp.zeros(total.shape, jnp.float32)

  if to_slots:
    chosen = among_slots(rank_1Q, slot * SLOTS, 0)
  else:
    column_Q1 = as_columns(jnp.broadcast_to(rank_1Q, (8, POSITIONS)))[:, :1]
    chosen = among_slots(column_Q1, slot * SLOTS, 1)
  total[...] += exact_product(chosen, x_ref[0], ((1,), (0,)))

  @pl.when(leaves)
  def _():
    out_ref[0] = total[...].astype(out_ref.dtype)


def cost(sizes, itemsize: int) -> pl.CostEstimate:
  """Bytes: rows once, in and out."""
  B, T, C, D, _ = sizes
  passes = 1 if itemsize == 2 else 3
  return pl.CostEstimate(
    flops=2 * passes * B * sizes.steps * POSITIONS * SLOTS * D,
    transcendentals=0,
    bytes_accessed=B * (T + C) * D * itemsize,
  )


def _move(x_BAD, rank_BT, moved_BT, capacity: int, to_slots: bool):
  """rank_BT: that the path follows; moved_BT: bool, positions that exchange."""
  T, D = rank_BT.shape[1], x_BAD.shape[2]
  sizes = Sizes(
    x_BAD.shape[0], round_up(T, POSITIONS), round_up(capacity, SLOTS), D, blocks.channels(D)
  )
  rank_BT = jnp.pad(rank_BT, ((0, 0), (0, sizes.T - T)), mode="edge")
  moved_BT = jnp.pad(moved_BT, ((0, 0), (0, sizes.T - T)))
  paths = path(rank_BT, POSITIONS, SLOTS, sizes.tiles[1])
  whole = sizes.T if to_slots else sizes.C
  x_BAD = jnp.pad(x_BAD, ((0, 0), (0, whole - x_BAD.shape[1]), (0, 0)))
  out = move(sizes, x_BAD, jnp.where(moved_BT, rank_BT, -1)[:, None], paths, to_slots)
  return out[:, : capacity if to_slots else T]


def move(sizes: Sizes, x_BAD, rank_B1T, paths, to_slots: bool):
  """The kernel on padded arguments. rank_B1T: -1 where a position exchanges nothing. paths: of
  `paths.path`."""

  def spec(block, which: int, axis: int):
    def index(b, w, s, *path):
      tile = path[which][b * sizes.steps + s]
      return (b, tile, w) if axis == 1 else (b, 0, tile)

    return pl.BlockSpec(block, index)

  position = spec((1, POSITIONS, sizes.width), 0, 1)
  slot = spec((1, SLOTS, sizes.width), 1, 1)
  rows = sizes.C if to_slots else sizes.T
  return pl.pallas_call(
    functools.partial(_body, sizes, to_slots),
    name="rows_to_slots" if to_slots else "rows_to_positions",
    out_shape=jax.ShapeDtypeStruct((sizes.B, rows, sizes.D), x_BAD.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(sizes.B, sizes.D // sizes.width, sizes.steps),
      in_specs=[position if to_slots else slot, spec((1, 1, POSITIONS), 0, 2)],
      out_specs=slot if to_slots else position,
      scratch_shapes=[pltpu.VMEM((SLOTS if to_slots else POSITIONS, sizes.width), jnp.float32)],
    ),
    cost_estimate=cost(sizes, x_BAD.dtype.itemsize),
    **on_tpu("parallel", "parallel", "arbitrary"),
  )(*(p.reshape(-1) for p in paths), x_BAD, rank_B1T)


def to_slots(x_BTD, rank_BT, moved_BT, capacity: int):
  """y_j = sum of x_t over moved positions of rank j, 0 where there are none; float32 sums, (B, C, D) in
  x's dtype. A value that is not finite makes its whole tile of slots not finite."""
  return _move(x_BTD, rank_BT, moved_BT, capacity, True)


def to_positions(y_BCD, rank_BT, moved_BT):
  """x_t = y_{rank_t} at moved positions, 0 elsewhere: the transpose of `to_slots`. (B, T, D)."""
  return _move(y_BCD, rank_BT, moved_BT & (rank_BT >= 0), y_BCD.shape[1], False)


def supports(x, spec=None) -> str | None:
  """None, or the sentence that says why not. x (B, T or C, D): anything with shape and dtype."""
  reason = why_not_here()
  if reason is not None:
    return reason
  if len(x.shape) != 3 or x.dtype not in (jnp.float32, jnp.bfloat16):
    return f'rows are {x.dtype} {tuple(x.shape)}; it moves float32 or bfloat16 (B, T, D); use implementation="xla"'
  if jax.sharding.get_abstract_mesh().size > 1 and spec is None:
    return "the compiler does not partition it: under a mesh of several devices pass spec, the rows' PartitionSpec"
  width = blocks.channels(x.shape[2])
  if width is None:
    return f'd_model {x.shape[2]} is not a multiple of 128; use implementation="xla"'
  need, most = blocks.vmem_bytes(width, 4), vmem_bytes(target_device_kind())
  if need > most:
    return (
      f'{width} channels need {need >> 20} MiB on chip, of {most >> 20}; use implementation="xla"'
    )
  return whole_rows(x, spec)


def whole_rows(x, spec) -> str | None:
  """None, or the sentence that says that spec shares positions or channels of x among devices, or
  that its batch does not divide over them."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1 or spec is None:
    return None
  shards = []
  for names in (*spec, None, None, None)[:3]:
    names = () if names is None else (names,) if isinstance(names, str) else names
    shards.append(math.prod(mesh.shape.get(name, 1) for name in names))
  if max(shards[1:]) > 1:
    return f'spec {spec} shares a row among devices, and a kernel needs it whole; use implementation="xla"'
  if x.shape[0] % shards[0]:
    return f'{x.shape[0]} rows do not divide over {shards[0]} devices; use implementation="xla"'
  return None


def over_batch(fn, spec, *args):
  """fn under shard_map where the mesh has several devices: rows of the batch as spec says. Arguments
  and results are arrays, or None, whose first axis is the batch."""
  if spec is None or jax.sharding.get_abstract_mesh().size <= 1:
    return fn(*args)
  batch = jax.P((*spec, None)[0])
  return jax.shard_map(
    fn,
    in_specs=tuple(None if x is None else batch for x in args),
    out_specs=batch,
    check_vma=False,
  )(*args)
