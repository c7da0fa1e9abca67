"""The gradients of flash attention with biases, as three Mosaic GPU kernels for Hopper.

Axes and operands: `mosaic_parts`. With p = exp(s - lse):

  ds = p (do.v - sum(do o));  dv = p^T do, dk = ds'^T q, dq = ds' k, ds' = ds through the softcap;
  d column = sum_j ds;  d row = -sum_q ds.

dk and dv are computed from transposed tiles, whose rows are keys: their strip has f(x - a). The
gradient of the line is added up by a kernel of its own, one block per head and distance of tiles,
from scores that are computed once more: no two blocks add to one place.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxlm.kernels import mosaic_pipeline as pipeline
from jaxlm.kernels.attention.mosaic_parts import (
  Call,
  Copies,
  Operands,
  at_slot,
  late_first,
  launch,
  load_keys,
  load_queries,
  strip_buffer,
  tile_buffers,
  tile_scores,
)
from jaxlm.kernels.attention.reference import AttentionSpec
from jaxlm.kernels.mosaic_pipeline import COMPUTE, add_product, load_along, spread
from jaxlm.kernels.mosaic_support import ROWS


def _weights(call: Call, s, own, here, distance, query_axis: int):
  """(p, tanh of the softcap or None) of a tile from its products s."""
  s, capped = tile_scores(call.rule, s, distance, query_axis, {**own, **here})
  lse = own["lse"] if "lse" in own else here["lse"]
  return jnp.exp(s - spread(load_along(lse, query_axis), s.shape, query_axis)), capped


def _score_gradients(p, dp, delta, query_axis: int, capped):
  """(ds, ds through the softcap)."""
  ds = p * (dp - spread(load_along(delta, query_axis), p.shape, query_axis))
  return ds, ds if capped is None else ds * (1 - capped * capped)


def _dq_body(call: Call, refs, *, query, tiles, row_barriers, tile_barriers, out):
  batch, head, wg = (jax.lax.axis_index(name) for name in ("batch", "head", "wg"))
  block = late_first(call, jax.lax.axis_index("tile"), call.T // (COMPUTE * ROWS))
  kv_head = head // (refs["q"].shape[2] // refs["k"].shape[2])
  block_start = block * (COMPUTE * ROWS)
  W = call.block_back
  first, end = call.keys_of(block_start, COMPUTE * ROWS, W)
  count, tile = end - first, (ROWS, W)

  @pl.when(wg < COMPUTE)
  def _():
    plgpu.set_max_registers(pipeline.COMPUTE_REGISTERS, action="increase")
    start, own = block_start + wg * ROWS, at_slot(query, wg)
    load_queries(refs, Copies(row_barriers.at[wg]), batch, head, start, own)
    plgpu.barrier_wait(row_barriers.at[wg])

    def step(n, carry):
      dq, d_column = carry
      slot, k_start = pipeline.slot_of(n, call.stages), (first + n) * W
      plgpu.barrier_wait(tile_barriers[0].at[slot])
      here = at_slot(tiles, slot)
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
      start, copy, here = (first + n) * W, Copies(tile_barriers[0].at[slot]), at_slot(tiles, slot)
      load_keys(refs, copy, batch, head, kv_head, start, W, here)
      if "strip" in here:
        for i in range(COMPUTE):
          at = call.offset - (block_start + i * ROWS - start)
          copy(refs["strip"].at[head, :, pl.ds(at, W)], here["strip"].at[i])

    pipeline.produce(count, call.stages, load, (tile_barriers[1],))


def _dq(call: Call, x: Operands, extra: dict) -> dict:
  (B, T, N, _), stages = x.q.shape, call.stages
  query = tile_buffers(x, COMPUTE, ROWS, "q do lse delta column q_segment")
  strip = strip_buffer(x.strip, stages, COMPUTE, ROWS, call.block_back)
  tiles = tile_buffers(x, stages, call.block_back, "k v row k_segment", strip=strip)
  d_column = None if x.column is None else jax.ShapeDtypeStruct((B, N, T), jnp.float32)
  return launch(
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
    start, own = block_start + wg * ROWS, at_slot(key, wg)
    load_keys(refs, Copies(row_barriers.at[wg]), batch, head, kv_head, start, ROWS, own)
    plgpu.barrier_wait(row_barriers.at[wg])

    def step(n, carry):
      dk, dv, d_row = carry
      slot, q_start = pipeline.slot_of(n, call.stages), (first + n) * W
      plgpu.barrier_wait(tile_barriers[0].at[slot])
      here = at_slot(tiles, slot)
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
      start, copy, here = (first + n) * W, Copies(tile_barriers[0].at[slot]), at_slot(tiles, slot)
      load_queries(refs, copy, batch, head, start, here, W)
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
  key = tile_buffers(x, COMPUTE, ROWS, f"k {own_v} row k_segment")
  strip = strip_buffer(x.turned, stages, COMPUTE, ROWS, call.block_back)
  delta = "delta" if with_dk else ""
  tiles = tile_buffers(
    x, stages, call.block_back, f"q do lse {delta} column q_segment", strip=strip
  )
  d_row = jax.ShapeDtypeStruct((B, N, S), jnp.float32) if with_dk and x.row is not None else None
  return launch(
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
      here = at_slot(tiles, slot)
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
      copy, here = Copies(tile_barriers[0].at[slot]), at_slot(tiles, slot)
      load_queries(refs, copy, batch, head, q_tile * ROWS, here)
      load_keys(refs, copy, batch, head, kv_head, (q_tile - lag) * ROWS, ROWS, here)

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
  tiles = tile_buffers(x, stages, ROWS, "q do lse delta column q_segment k v row k_segment")
  return launch(
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
