"""Flash attention with biases as Mosaic GPU kernels for Hopper: forward, and three of the backward.

Axes: B batch, N query heads, K kv heads, H and F head sizes, T queries, S keys; Q queries and W keys
of one tile; P pairs of numbers per key and query; X columns of a strip.

A block of threads has two computing warpgroups, each with 64 rows of its own, and one that copies.
Scores of a tile stay in registers, in the layout of matrix products' results; what belongs to a
query or a key is a row or a column of it.

  s_qj = softcap(scale q_q.k_j) + strip_qj + sum_p (column_pq - row_pj),   MASKED where hidden

A bias of distance f(i - j) is a strip per head, strip[a, x] = f(a + offset - x): a tile is 64
columns or more of it, at a multiple of 64. Backward, with p = exp(s - lse):

  ds = p (do.v - sum(do o));  dv = p^T do, dk = ds'^T q, dq = ds' k, ds' = ds through the softcap;
  d column = sum_j ds;  d row = -sum_q ds.

dk and dv are computed from transposed tiles, whose rows are keys: their strip has f(x - a). The
gradient of the line is added up by a kernel of its own, one block per head and distance of tiles,
from scores that are computed once more: no two blocks add to one place.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxlm.kernels import mosaic_pipeline as pipeline
from jaxlm.kernels.attention.reference import LOWEST_MAX, MASKED, AttentionSpec
from jaxlm.kernels.mosaic_pipeline import COMPUTE, add_product, load_along, position, spread
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


def _seen(rule: AttentionSpec, lag, distance):
  """Which pairs positions let attend. i - j = lag + distance."""
  seen = lag >= -distance if rule.causal else None
  if rule.window is not None:
    near = lag < rule.window - distance
    seen = near if seen is None else seen & near
    if not rule.causal:
      seen &= lag > -rule.window - distance
  return seen


def _whole(rule: AttentionSpec, distance, queries: int, keys: int):
  """Whether positions hide no pair of a tile. distance: i - j of its first query and key."""
  whole = True
  if rule.causal:
    whole = distance - (keys - 1) >= 0
  if rule.window is not None:
    whole &= distance + queries - 1 < rule.window
    if not rule.causal:
      whole &= distance - (keys - 1) > -rule.window
  return whole


def _scores(rule: AttentionSpec, s, distance, query_axis: int, smem):
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
      return jnp.where(_seen(rule, lag, distance), s, MASKED)

    sizes = shape[query_axis], shape[key_axis]
    s = jax.lax.cond(_whole(rule, distance, *sizes), lambda s: s, masked, s)
  return s, capped


class _Copies:
  """Copies from device memory into slots of shared memory that arrive at one barrier."""

  def __init__(self, barrier):
    self.barrier = barrier

  def __call__(self, source, into):
    plgpu.copy_gmem_to_smem(source, into, self.barrier)


def _copy_numbers(copy, source, batch, head, start, size, into):
  """(P, size) of (B, N or 1, P, length)."""
  own = head if source.shape[1] > 1 else 0
  copy(source.at[batch, own, :, pl.ds(start, size)], into)


def _at(buffers: dict, slot):
  return {name: ref.at[slot] for name, ref in buffers.items()}


def _kernel(body, name, x: Operands, extra: dict, outs: dict, grid: dict, threads: int, scratch):
  """plgpu.kernel with arguments, results and shared memory by name: body(refs, **scratch)."""
  ins, outs = _some(**x._asdict(), **extra), _some(**outs)
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


def _forward_body(call: Call, refs, *, query, tiles, row_barriers, k_barriers, v_barriers, out):
  rule, W = call.rule, call.block_k
  batch, head, wg = (jax.lax.axis_index(name) for name in ("batch", "head", "wg"))
  block = _late_first(call, jax.lax.axis_index("tile"), call.T // (COMPUTE * ROWS))
  kv_head = head // (refs["q"].shape[2] // refs["k"].shape[2])
  block_start = block * (COMPUTE * ROWS)
  first, end = call.keys_of(block_start, COMPUTE * ROWS, W)
  count = end - first
  k_slots = {name: ref for name, ref in tiles.items() if name != "v"}

  @pl.when(wg < COMPUTE)
  def _():
    plgpu.set_max_registers(pipeline.COMPUTE_REGISTERS, action="increase")
    start = block_start + wg * ROWS
    own, copy = _at(query, wg), _Copies(row_barriers.at[wg])
    _load_queries(refs, copy, batch, head, start, own)
    plgpu.barrier_wait(row_barriers.at[wg])
    F = refs["v"].shape[3]

    def step(n, carry):
      acc, m, l = carry
      slot, k_start = pipeline.slot_of(n, call.stages), (first + n) * W
      plgpu.barrier_wait(k_barriers[0].at[slot])
      here = _at(k_slots, slot)
      s = pipeline.product(own["q"], here["k"].transpose((1, 0)), (ROWS, W))
      if "strip" in here:
        here["strip"] = here["strip"].at[wg]
      s, _ = _scores(rule, s, start - k_start, 0, {**own, **here})
      pipeline.release(k_barriers[1].at[slot], len(here) > 1)
      new = jnp.maximum(m, s.max(axis=1))
      fade = jnp.exp(m - new)
      p = jnp.exp(s - spread(new, s.shape, 0))
      l = l * fade + p.sum(axis=1)
      acc = acc * spread(fade, acc.shape, 0)
      low = p.astype(refs["v"].dtype)
      plgpu.barrier_wait(v_barriers[0].at[slot])
      acc = add_product(acc, low, tiles["v"].at[slot])
      pipeline.release(v_barriers[1].at[slot], False)
      return acc, new, l

    zero = pipeline.along(0.0, ROWS, 0)
    m = pipeline.along(0.0 if rule.softmax1 else LOWEST_MAX, ROWS, 0)
    acc, m, l = jax.lax.fori_loop(0, count, step, (pipeline.whole(0.0, (ROWS, F)), m, zero))
    if rule.softmax1:
      l = l + jnp.exp(-m)
    l = jnp.where(l == 0, 1.0, l)
    acc = acc * spread(1 / l, acc.shape, 0)
    o = out["o"].at[wg] if "o" in out else own["q"]
    lse = out["lse"].at[wg]
    o[...] = acc.astype(o.dtype)
    lse[...] = m + jnp.log(l)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(o, refs["o"].at[batch, pl.ds(start, ROWS), head])
    plgpu.copy_smem_to_gmem(lse, refs["lse"].at[batch, head, pl.ds(start, ROWS)])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == COMPUTE)
  def _():
    plgpu.set_max_registers(pipeline.MEMORY_REGISTERS, action="decrease")

    def load(n, slot, group):
      start = (first + n) * W
      if group == 1:
        copy = _Copies(v_barriers[0].at[slot])
        copy(refs["v"].at[batch, pl.ds(start, W), kv_head], tiles["v"].at[slot])
        return
      copy, here = _Copies(k_barriers[0].at[slot]), _at(k_slots, slot)
      _load_keys(refs, copy, batch, head, kv_head, start, W, here)
      if "strip" in here:
        for i in range(COMPUTE):
          at = call.offset - (block_start + i * ROWS - start)
          copy(refs["strip"].at[head, :, pl.ds(at, W)], here["strip"].at[i])

    pipeline.produce(count, call.stages, load, (k_barriers[1], v_barriers[1]))


def _late_first(call: Call, block, count: int):
  """Blocks with the most keys first: they would otherwise end last."""
  return count - 1 - block if call.rule.causal else block


def _load_queries(refs, copy, batch, head, start, into, size=ROWS):
  """Everything of `size` queries that `into` has a place for."""
  for name in ("q", "do"):
    if name in into:
      copy(refs[name].at[batch, pl.ds(start, size), head], into[name])
  for name in ("lse", "delta"):
    if name in into:
      copy(refs[name].at[batch, head, pl.ds(start, size)], into[name])
  if "column" in into:
    _copy_numbers(copy, refs["column"], batch, head, start, size, into["column"])
  if "q_segment" in into:
    copy(refs["q_segment"].at[batch, pl.ds(start, size)], into["q_segment"])


def _load_keys(refs, copy, batch, head, kv_head, start, size, into):
  """Everything of `size` keys that `into` has a place for, but strips."""
  for name in ("k", "v"):
    if name in into:
      copy(refs[name].at[batch, pl.ds(start, size), kv_head], into[name])
  if "row" in into:
    _copy_numbers(copy, refs["row"], batch, head, start, size, into["row"])
  if "k_segment" in into:
    copy(refs["k_segment"].at[batch, pl.ds(start, size)], into["k_segment"])


def _buffers(x: Operands, slots: int, size: int, names: str, **more) -> dict:
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
  return {**found, **_some(**more)}


def _some(**entries) -> dict:
  return {name: entry for name, entry in entries.items() if entry is not None}


def _strips(array, *shape):
  return None if array is None else plgpu.SMEM(shape, jnp.float32)


def forward(call: Call, x: Operands):
  """(o_BTNF in q's dtype, lse_BNT float32)."""
  B, T, N, _ = x.q.shape
  F, W, stages = x.v.shape[3], call.block_k, call.stages
  strip = _strips(x.strip, stages, COMPUTE, ROWS, W)
  query = _buffers(x, COMPUTE, ROWS, "q column q_segment")
  tiles = _buffers(x, stages, W, "k v row k_segment", strip=strip)
  copies = len(tiles) - 1 + (strip is not None)  # a strip for each computing warpgroup
  out = _kernel(
    functools.partial(_forward_body, call),
    "attention_forward",
    x._replace(turned=None),
    {},
    dict(
      o=jax.ShapeDtypeStruct((B, T, N, F), x.q.dtype),
      lse=jax.ShapeDtypeStruct((B, N, T), jnp.float32),
    ),
    dict(head=N, tile=T // (COMPUTE * ROWS), batch=B),
    COMPUTE + 1,
    dict(
      query=query,
      tiles=tiles,
      row_barriers=plgpu.Barrier(num_arrivals=len(query), num_barriers=COMPUTE),
      k_barriers=pipeline.barriers(stages, copies),
      v_barriers=pipeline.barriers(stages, 1),
      out=_some(
        o=plgpu.SMEM((COMPUTE, ROWS, F), x.q.dtype) if F != x.q.shape[3] else None,
        lse=plgpu.SMEM((COMPUTE, ROWS), jnp.float32),
      ),
    ),
  )
  return out["o"], out["lse"]


# --- backward: dq, d column ------------------------------------------------------------------


def _weights(call: Call, s, own, here, distance, query_axis: int):
  """(p, tanh of the softcap or None) of a tile from its products s."""
  s, capped = _scores(call.rule, s, distance, query_axis, {**own, **here})
  lse = own["lse"] if "lse" in own else here["lse"]
  return jnp.exp(s - spread(load_along(lse, query_axis), s.shape, query_axis)), capped


def _score_gradients(p, dp, delta, query_axis: int, capped):
  """(ds, ds through the softcap)."""
  ds = p * (dp - spread(load_along(delta, query_axis), p.shape, query_axis))
  return ds, ds if capped is None else ds * (1 - capped * capped)


def _dq_body(call: Call, refs, *, query, tiles, row_barriers, tile_barriers, out):
  batch, head, wg = (jax.lax.axis_index(name) for name in ("batch", "head", "wg"))
  block = _late_first(call, jax.lax.axis_index("tile"), call.T // (COMPUTE * ROWS))
  kv_head = head // (refs["q"].shape[2] // refs["k"].shape[2])
  block_start = block * (COMPUTE * ROWS)
  W = call.block_back
  first, end = call.keys_of(block_start, COMPUTE * ROWS, W)
  count, tile = end - first, (ROWS, W)

  @pl.when(wg < COMPUTE)
  def _():
    plgpu.set_max_registers(pipeline.COMPUTE_REGISTERS, action="increase")
    start, own = block_start + wg * ROWS, _at(query, wg)
    _load_queries(refs, _Copies(row_barriers.at[wg]), batch, head, start, own)
    plgpu.barrier_wait(row_barriers.at[wg])

    def step(n, carry):
      dq, d_column = carry
      slot, k_start = pipeline.slot_of(n, call.stages), (first + n) * W
      plgpu.barrier_wait(tile_barriers[0].at[slot])
      here = _at(tiles, slot)
      s = pipeline.product(own["q"], here["k"].transpose((1, 0)), tile)
      dp = pipeline.product(own["do"], here["v"].transpose((1, 0)), tile)
      if "strip" in here:
        here["strip"] = here["strip"].at[wg]
      p, capped = _weights(call, s, own, here, start - k_start, 0)
      ds, dc = _score_gradients(p, dp, own["delta"], 0, capped)
      if "d_column" in refs:
        d_column = d_column + ds.sum(axis=1)
      dq = add_product(dq, dc.astype(refs["k"].dtype), here["k"])
      pipeline.release(tile_barriers[1].at[slot], len(here) > 2)
      return dq, d_column

    zeros = pipeline.whole(0.0, (ROWS, refs["q"].shape[3])), pipeline.along(0.0, ROWS, 0)
    dq, d_column = jax.lax.fori_loop(0, count, step, zeros)
    own["q"][...] = (dq * call.rule.scale).astype(refs["dq"].dtype)
    if "d_column" in refs:
      out["d_column"].at[wg][...] = d_column
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(own["q"], refs["dq"].at[batch, pl.ds(start, ROWS), head])
    if "d_column" in refs:
      plgpu.copy_smem_to_gmem(
        out["d_column"].at[wg], refs["d_column"].at[batch, head, pl.ds(start, ROWS)]
      )
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == COMPUTE)
  def _():
    plgpu.set_max_registers(pipeline.MEMORY_REGISTERS, action="decrease")

    def load(n, slot, group):
      start, copy, here = (first + n) * W, _Copies(tile_barriers[0].at[slot]), _at(tiles, slot)
      _load_keys(refs, copy, batch, head, kv_head, start, W, here)
      if "strip" in here:
        for i in range(COMPUTE):
          at = call.offset - (block_start + i * ROWS - start)
          copy(refs["strip"].at[head, :, pl.ds(at, W)], here["strip"].at[i])

    pipeline.produce(count, call.stages, load, (tile_barriers[1],))


def _dq(call: Call, x: Operands, extra: dict) -> dict:
  (B, T, N, _), stages = x.q.shape, call.stages
  query = _buffers(x, COMPUTE, ROWS, "q do lse delta column q_segment")
  strip = _strips(x.strip, stages, COMPUTE, ROWS, call.block_back)
  tiles = _buffers(x, stages, call.block_back, "k v row k_segment", strip=strip)
  d_column = None if x.column is None else jax.ShapeDtypeStruct((B, N, T), jnp.float32)
  return _kernel(
    functools.partial(_dq_body, call),
    "attention_dq",
    x._replace(turned=None),
    extra,
    dict(dq=jax.ShapeDtypeStruct(x.q.shape, x.q.dtype), d_column=d_column),
    dict(head=N, tile=T // (COMPUTE * ROWS), batch=B),
    COMPUTE + 1,
    dict(
      query=query,
      tiles=tiles,
      row_barriers=plgpu.Barrier(num_arrivals=len(query), num_barriers=COMPUTE),
      tile_barriers=pipeline.barriers(stages, len(tiles) + (strip is not None)),
      out={} if d_column is None else dict(d_column=plgpu.SMEM((COMPUTE, ROWS), jnp.float32)),
    ),
  )


# --- backward: dk, dv, d row -----------------------------------------------------------------


def _dkv_body(call: Call, refs, *, key, tiles, row_barriers, tile_barriers, out):
  batch, head, wg = (jax.lax.axis_index(name) for name in ("batch", "head", "wg"))
  kv_head = head // (refs["q"].shape[2] // refs["k"].shape[2])
  block_start = jax.lax.axis_index("tile") * (COMPUTE * ROWS)
  W = call.block_back
  first, end = call.queries_of(block_start, COMPUTE * ROWS, W)
  count, tile = end - first, (ROWS, W)

  @pl.when(wg < COMPUTE)
  def _():
    plgpu.set_max_registers(pipeline.COMPUTE_REGISTERS, action="increase")
    start, own = block_start + wg * ROWS, _at(key, wg)
    _load_keys(refs, _Copies(row_barriers.at[wg]), batch, head, kv_head, start, ROWS, own)
    plgpu.barrier_wait(row_barriers.at[wg])

    def step(n, carry):
      dk, dv, d_row = carry
      slot, q_start = pipeline.slot_of(n, call.stages), (first + n) * W
      plgpu.barrier_wait(tile_barriers[0].at[slot])
      here = _at(tiles, slot)
      s = pipeline.product(own["k"], here["q"].transpose((1, 0)), tile)
      if "strip" in here:
        here["strip"] = here["strip"].at[wg]
      p, capped = _weights(call, s, own, here, q_start - start, 1)
      if "dv" in refs:
        dv = add_product(dv, p.astype(refs["do"].dtype), here["do"])
      if "dk" in refs:
        dp = pipeline.product(own["v"], here["do"].transpose((1, 0)), tile)
        ds, dc = _score_gradients(p, dp, here["delta"], 1, capped)
        if "d_row" in refs:
          d_row = d_row - ds.sum(axis=1)
        dk = add_product(dk, dc.astype(refs["q"].dtype), here["q"])
      pipeline.release(tile_barriers[1].at[slot], len(here) > 2)
      return dk, dv, d_row

    H, F = refs["k"].shape[3], refs["v"].shape[3]
    dk = pipeline.whole(0.0, (ROWS, H)) if "dk" in refs else None
    dv = pipeline.whole(0.0, (ROWS, F)) if "dv" in refs else None
    dk, dv, d_row = jax.lax.fori_loop(0, count, step, (dk, dv, pipeline.along(0.0, ROWS, 0)))
    into = dict(dk=own["k"], dv=own.get("v", own["k"]))
    if dk is not None:
      into["dk"][...] = (dk * call.rule.scale).astype(refs["dk"].dtype)
    if dv is not None:
      into["dv"][...] = dv.astype(refs["dv"].dtype)
    if "d_row" in refs:
      out["d_row"].at[wg][...] = d_row
    plgpu.commit_smem()
    here = pl.ds(start, ROWS)
    for name in ("dk", "dv"):
      if name in refs:
        plgpu.copy_smem_to_gmem(into[name], refs[name].at[batch, here, head])
    if "d_row" in refs:
      plgpu.copy_smem_to_gmem(out["d_row"].at[wg], refs["d_row"].at[batch, head, here])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == COMPUTE)
  def _():
    plgpu.set_max_registers(pipeline.MEMORY_REGISTERS, action="decrease")

    def load(n, slot, group):
      start, copy, here = (first + n) * W, _Copies(tile_barriers[0].at[slot]), _at(tiles, slot)
      _load_queries(refs, copy, batch, head, start, here, W)
      if "strip" in here:
        for i in range(COMPUTE):
          at = call.turned_offset + start - (block_start + i * ROWS)
          copy(refs["turned"].at[head, :, pl.ds(at, W)], here["strip"].at[i])

    pipeline.produce(count, call.stages, load, (tile_barriers[1],))


def _dkv(call: Call, x: Operands, extra: dict, names: tuple[str, ...]) -> dict:
  """names: which of dk (with d row) and dv. Both together take one product less and, with a head of
  128, more registers than there are."""
  (B, _, N, H), (S, F), stages = x.q.shape, (x.k.shape[1], x.v.shape[3]), call.stages
  with_dk = "dk" in names
  # Of v's shape where F is not H: k's place cannot take dv then.
  own_v = "v" if with_dk or F != H else ""
  key = _buffers(x, COMPUTE, ROWS, f"k {own_v} row k_segment")
  strip = _strips(x.turned, stages, COMPUTE, ROWS, call.block_back)
  delta = "delta" if with_dk else ""
  tiles = _buffers(x, stages, call.block_back, f"q do lse {delta} column q_segment", strip=strip)
  d_row = jax.ShapeDtypeStruct((B, N, S), jnp.float32) if with_dk and x.row is not None else None
  return _kernel(
    functools.partial(_dkv_body, call),
    "attention_" + "_".join(names),
    x._replace(strip=None),
    extra,
    dict(
      dk=jax.ShapeDtypeStruct((B, S, N, H), x.k.dtype) if with_dk else None,
      dv=jax.ShapeDtypeStruct((B, S, N, F), x.v.dtype) if "dv" in names else None,
      d_row=d_row,
    ),
    dict(head=N, tile=S // (COMPUTE * ROWS), batch=B),
    COMPUTE + 1,
    dict(
      key=key,
      tiles=tiles,
      row_barriers=plgpu.Barrier(num_arrivals=len(key), num_barriers=COMPUTE),
      tile_barriers=pipeline.barriers(stages, len(tiles) + (strip is not None)),
      out={} if d_row is None else dict(d_row=plgpu.SMEM((COMPUTE, ROWS), jnp.float32)),
    ),
  )


# --- backward: the bias of distance ----------------------------------------------------------


def _d_strip_body(call: Call, refs, *, bias, tiles, bias_barrier, tile_barriers):
  head, column, wg = (jax.lax.axis_index(name) for name in ("head", "column", "wg"))
  kv_head = head // (refs["q"].shape[2] // refs["k"].shape[2])
  lag = call.T // ROWS - 1 - column  # tile of queries - tile of keys
  first = jnp.maximum(lag, 0)
  each = jnp.minimum(call.T // ROWS, call.S // ROWS + lag) - first
  live = _live(call.rule, lag * ROWS)
  count, tile = jnp.where(live, refs["q"].shape[0] * each, 0), (ROWS, ROWS)

  @pl.when(wg == 0)
  def _():
    plgpu.set_max_registers(pipeline.COMPUTE_REGISTERS, action="increase")
    plgpu.copy_gmem_to_smem(
      refs["strip"].at[head, :, pl.ds(column * ROWS, ROWS)], bias, bias_barrier
    )
    plgpu.barrier_wait(bias_barrier)

    def step(n, total):
      slot = pipeline.slot_of(n, call.stages)
      plgpu.barrier_wait(tile_barriers[0].at[slot])
      here = _at(tiles, slot)
      s = pipeline.product(here["q"], here["k"].transpose((1, 0)), tile)
      dp = pipeline.product(here["do"], here["v"].transpose((1, 0)), tile)
      p, _ = _weights(call, s, {"strip": bias}, here, lag * ROWS, 0)
      ds, _ = _score_gradients(p, dp, here["delta"], 0, None)
      pipeline.release(tile_barriers[1].at[slot], len(here) > 2)
      return total + ds

    total = jax.lax.fori_loop(0, count, step, pipeline.whole(0.0, tile))
    bias[...] = total
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(bias, refs["d_strip"].at[head, :, pl.ds(column * ROWS, ROWS)])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == 1)
  def _():
    plgpu.set_max_registers(pipeline.MEMORY_REGISTERS, action="decrease")

    def load(n, slot, group):
      batch, q_tile = n // each, first + jax.lax.rem(n, each)
      copy, here = _Copies(tile_barriers[0].at[slot]), _at(tiles, slot)
      _load_queries(refs, copy, batch, head, q_tile * ROWS, here)
      _load_keys(refs, copy, batch, head, kv_head, (q_tile - lag) * ROWS, ROWS, here)

    pipeline.produce(count, call.stages, load, (tile_barriers[1],))


def _live(rule: AttentionSpec, distance):
  """Whether some pair of a tile of ROWS by ROWS may attend."""
  live = distance > -rule.window - ROWS if rule.window is not None else distance == distance
  if rule.causal:
    live &= distance > -ROWS
  if rule.window is not None:
    live &= distance - ROWS < rule.window
  return live


def _d_strip(call: Call, x: Operands, extra: dict):
  stages = call.stages
  tiles = _buffers(x, stages, ROWS, "q do lse delta column q_segment k v row k_segment")
  return _kernel(
    functools.partial(_d_strip_body, call),
    "attention_d_strip",
    x._replace(turned=None),
    extra,
    dict(d_strip=jax.ShapeDtypeStruct(x.strip.shape, jnp.float32)),
    dict(head=x.q.shape[2], column=call.strip_width // ROWS),
    2,
    dict(
      bias=plgpu.SMEM((ROWS, ROWS), jnp.float32),
      tiles=tiles,
      bias_barrier=plgpu.Barrier(),
      tile_barriers=pipeline.barriers(stages, len(tiles), compute=1),
    ),
  )["d_strip"]


def backward(call: Call, x: Operands, do_BTNF, lse_BNT, delta_BNT) -> dict:
  """Gradients by name: dq_BTNH; dk_BSNH, dv_BSNF per *query* head, to be summed; d_strip_NQX,
  d_row_BNS, d_column_BNT where there is one.
  """
  extra = dict(do=do_BTNF, lse=lse_BNT, delta=delta_BNT)
  wide = x.k.shape[3] + x.v.shape[3] > 3 * ROWS
  found = _dq(call, x, extra)
  for names in (("dk",), ("dv",)) if wide else (("dk", "dv"),):
    found |= _dkv(call, x, extra, names)
  if x.strip is not None:
    found["d_strip"] = _d_strip(call, x, extra)
  return found
