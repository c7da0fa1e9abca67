"""What the Mosaic GPU kernels of attention share: operands, masks, scores, copies and buffers.

Axes: B batch, N query heads, K kv heads, H and F head sizes, T queries, S keys; Q queries and W keys
of one tile; P pairs of numbers per key and query; X columns of a strip.

A block of threads has two computing warpgroups, each with 64 rows of its own, and one that copies.
Scores of a tile stay in registers, in the layout of matrix products' results; what belongs to a
query or a key is a row or a column of it.

  s_qj = softcap(scale q_q.k_j) + strip_qj + sum_p (column_pq - row_pj),   MASKED where hidden

A bias of distance f(i - j) is a strip per head, strip[a, x] = f(a + offset - x): a tile is 64
columns or more of it, at a multiple of 64.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxlm.kernels.attention.reference import MASKED, AttentionSpec
from jaxlm.kernels.mosaic_pipeline import load_along, position, spread
from jaxlm.kernels.mosaic_support import ROWS, interpreter


class Operands(NamedTuple):
  """Padded arguments. All but q, k and v may be None.

  q_BTNH, k_BSKH, v_BSKF; strip_NQX, turned_NQX: the bias of distance for tiles whose rows are
  queries, keys; row_BNPS: subtracted per key, its N may be 1; column_BNPT: added per query, with as
  many P as row; q_segment_BT, k_segment_BS: int32, those of keys never 0.
  """

  q: Any
  k: Any
  v: Any
  strip: Any = None
  turned: Any = None
  row: Any = None
  column: Any = None
  q_segment: Any = None
  k_segment: Any = None


@dataclasses.dataclass(frozen=True)
class Call:
  """The static side of a kernel call. T, S: padded; block_k: keys of a tile forward; block_back: keys,
  or queries, that pass by backward; stages: tiles of them that are in shared memory at a time.
  """

  rule: AttentionSpec
  T: int
  S: int
  block_k: int
  block_back: int
  stages: int = 2

  @property
  def offset(self) -> int:
    """Of the strip: column x of row a is distance a + offset - x."""
    return self.T - ROWS

  @property
  def turned_offset(self) -> int:
    """Of the turned strip: column x of row a is distance x - a - turned_offset."""
    return self.S - ROWS

  @property
  def strip_width(self) -> int:
    return self.T + self.S - ROWS

  def keys_of(self, start, size: int, block: int):
    """(first, end) of the tiles of `block` keys that queries start .. start + size - 1 may see."""
    rule, first, end = self.rule, 0, self.S // block
    if rule.causal:
      end = jnp.minimum(end, (start + size + block - 1) // block)
    if rule.window is not None:
      first = jnp.maximum(start - rule.window + 1, 0) // block
      if not rule.causal:
        end = jnp.minimum(end, (start + size + rule.window + block - 2) // block)
    return jnp.minimum(first, end), end

  def queries_of(self, start, size: int, block: int):
    """(first, end) of the tiles of `block` queries that may see keys start .. start + size - 1."""
    rule, first, end = self.rule, 0, self.T // block
    if rule.causal:
      first = start // block
    if rule.window is not None:
      end = jnp.minimum(end, (start + size + rule.window + block - 2) // block)
      if not rule.causal:
        first = jnp.maximum(start - rule.window + 1, 0) // block
    return jnp.minimum(first, end), end


def seen_pairs(rule: AttentionSpec, lag, distance):
  """Which pairs positions let attend. i - j = lag + distance."""
  seen = lag >= -distance if rule.causal else None
  if rule.window is not None:
    near = lag < rule.window - distance
    seen = near if seen is None else seen & near
    if not rule.causal:
      seen &= lag > -rule.window - distance
  return seen


def sees_all(rule: AttentionSpec, distance, queries: int, keys: int):
  """Whether positions hide no pair of a tile. distance: i - j of its first query and key."""
  whole = True
  if rule.causal:
    whole = distance - (keys - 1) >= 0
  if rule.window is not None:
    whole &= distance + queries - 1 < rule.window
    if not rule.causal:
      whole &= distance - (keys - 1) > -rule.window
  return whole


def tile_scores(rule: AttentionSpec, s, distance, query_axis: int, smem):
  """(scores, tanh of the softcap or None) from products s; query_axis: axis of s with the queries;
  smem: what belongs to the tile, by name of the operand.
  """
  shape, key_axis, capped = s.shape, 1 - query_axis, None
  s = s * rule.scale
  if rule.softcap is not None:
    capped = jnp.tanh(s * (1 / rule.softcap))
    s = rule.softcap * capped
  if smem.get("strip") is not None:
    s = s + smem["strip"][...]
  if smem.get("row") is not None:
    for p in range(smem["row"].shape[0]):
      row = spread(load_along(smem["row"].at[p], key_axis), shape, key_axis)
      if smem.get("column") is not None:
        # The difference first: both may be large and their difference small.
        s = s + (spread(load_along(smem["column"].at[p], query_axis), shape, query_axis) - row)
      else:
        s = s - row
  if smem.get("q_segment") is not None:
    queries = spread(load_along(smem["q_segment"], query_axis), shape, query_axis)
    keys = spread(load_along(smem["k_segment"], key_axis), shape, key_axis)
    s = jnp.where(queries == keys, s, MASKED)
  if rule.causal or rule.window is not None:

    def masked(s):
      lag = position(shape, query_axis) - position(shape, key_axis)
      return jnp.where(seen_pairs(rule, lag, distance), s, MASKED)

    sizes = shape[query_axis], shape[key_axis]
    s = jax.lax.cond(sees_all(rule, distance, *sizes), lambda s: s, masked, s)
  return s, capped


class Copies:
  """Copies from device memory into slots of shared memory that arrive at one barrier."""

  def __init__(self, barrier):
    self.barrier = barrier

  def __call__(self, source, into):
    plgpu.copy_gmem_to_smem(source, into, self.barrier)


def copy_numbers(copy, source, batch, head, start, size, into):
  """(P, size) of (B, N or 1, P, length)."""
  own = head if source.shape[1] > 1 else 0
  copy(source.at[batch, own, :, pl.ds(start, size)], into)


def at_slot(buffers: dict, slot):
  return {name: ref.at[slot] for name, ref in buffers.items()}


def launch(body, name, x: Operands, extra: dict, outs: dict, grid: dict, threads: int, scratch):
  """plgpu.kernel with arguments, results and shared memory by name: body(refs, **scratch)."""
  ins, outs = those_given(**x._asdict(), **extra), those_given(**outs)
  keys = (*ins, *outs)

  def entry(*refs, **scratch):
    body(dict(zip(keys, refs)), **scratch)

  results = plgpu.kernel(
    entry,
    out_type=list(outs.values()),
    scratch_types=scratch,
    grid=tuple(grid.values()),
    grid_names=tuple(grid),
    num_threads=threads,
    thread_name="wg",
    kernel_name=name,
    compiler_params=plgpu.CompilerParams(approx_math=True),
    interpret=interpreter(),
  )(*ins.values())
  return dict(zip(outs, results))


# --- forward ---------------------------------------------------------------------------------


def late_first(call: Call, block, count: int):
  """Blocks with the most keys first: they would otherwise end last."""
  return count - 1 - block if call.rule.causal else block


def load_queries(refs, copy, batch, head, start, into, size=ROWS):
  """Everything of `size` queries that `into` has a place for."""
  for name in ("q", "do"):
    if name in into:
      copy(refs[name].at[batch, pl.ds(start, size), head], into[name])
  for name in ("lse", "delta"):
    if name in into:
      copy(refs[name].at[batch, head, pl.ds(start, size)], into[name])
  if "column" in into:
    copy_numbers(copy, refs["column"], batch, head, start, size, into["column"])
  if "q_segment" in into:
    copy(refs["q_segment"].at[batch, pl.ds(start, size)], into["q_segment"])


def load_keys(refs, copy, batch, head, kv_head, start, size, into):
  """Everything of `size` keys that `into` has a place for, but strips."""
  for name in ("k", "v"):
    if name in into:
      copy(refs[name].at[batch, pl.ds(start, size), kv_head], into[name])
  if "row" in into:
    copy_numbers(copy, refs["row"], batch, head, start, size, into["row"])
  if "k_segment" in into:
    copy(refs["k_segment"].at[batch, pl.ds(start, size)], into["k_segment"])


def tile_buffers(x: Operands, slots: int, size: int, names: str, **more) -> dict:
  """Shared memory for `slots` tiles of `size` queries or keys of each present operand."""
  widths = {"q": x.q.shape[3], "do": x.v.shape[3], "k": x.k.shape[3], "v": x.v.shape[3]}
  found = {}
  for name in names.split():
    if name in widths:
      found[name] = plgpu.SMEM((slots, size, widths[name]), x.q.dtype)
    elif name in ("lse", "delta"):
      found[name] = plgpu.SMEM((slots, size), jnp.float32)
    elif getattr(x, name) is None:
      continue
    elif name in ("row", "column"):
      found[name] = plgpu.SMEM((slots, getattr(x, name).shape[2], size), jnp.float32)
    else:
      found[name] = plgpu.SMEM((slots, size), jnp.int32)
  return {**found, **those_given(**more)}


def those_given(**entries) -> dict:
  return {name: entry for name, entry in entries.items() if entry is not None}


def strip_buffer(array, *shape):
  return None if array is None else plgpu.SMEM(shape, jnp.float32)
