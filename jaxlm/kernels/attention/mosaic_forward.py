"""Flash attention with biases forward, as a Mosaic GPU kernel for Hopper. Axes and operands: `mosaic_parts`."""

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
  those_given,
  tile_buffers,
  tile_scores,
)
from jaxlm.kernels.attention.reference import LOWEST_MAX
from jaxlm.kernels.mosaic_pipeline import COMPUTE, add_product, spread
from jaxlm.kernels.mosaic_support import ROWS


def _forward_body(call: Call, refs, *, query, tiles, row_barriers, k_barriers, v_barriers, out):
  rule, W = call.rule, call.block_k
  batch, head, wg = (jax.lax.axis_index(name) for name in ("batch", "head", "wg"))
  block = late_first(call, jax.lax.axis_index("tile"), call.T // (COMPUTE * ROWS))
  kv_head = head // (refs["q"].shape[2] // refs["k"].shape[2])
  block_start = block * (COMPUTE * ROWS)
  first, end = call.keys_of(block_start, COMPUTE * ROWS, W)
  count = end - first
  k_slots = {name: ref for name, ref in tiles.items() if name != "v"}

  @pl.when(wg < COMPUTE)
  def _():
    plgpu.set_max_registers(pipeline.COMPUTE_REGISTERS, action="increase")
    start = block_start + wg * ROWS
    own, copy = at_slot(query, wg), Copies(row_barriers.at[wg])
    load_queries(refs, copy, batch, head, start, own)
    plgpu.barrier_wait(row_barriers.at[wg])
    F = refs["v"].shape[3]

    def step(n, carry):
      acc, m, l = carry
      slot, k_start = pipeline.slot_of(n, call.stages), (first + n) * W
      plgpu.barrier_wait(k_barriers[0].at[slot])
      here = at_slot(k_slots, slot)
      s = pipeline.product(own["q"], here["k"].transpose((1, 0)), (ROWS, W))
      if "strip" in here:
        here["strip"] = here["strip"].at[wg]
      s, _ = tile_scores(rule, s, start - k_start, 0, {**own, **here})
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
        copy = Copies(v_barriers[0].at[slot])
        copy(refs["v"].at[batch, pl.ds(start, W), kv_head], tiles["v"].at[slot])
        return
      copy, here = Copies(k_barriers[0].at[slot]), at_slot(k_slots, slot)
      load_keys(refs, copy, batch, head, kv_head, start, W, here)
      if "strip" in here:
        for i in range(COMPUTE):
          at = call.offset - (block_start + i * ROWS - start)
          copy(refs["strip"].at[head, :, pl.ds(at, W)], here["strip"].at[i])

    pipeline.produce(count, call.stages, load, (k_barriers[1], v_barriers[1]))


def forward(call: Call, x: Operands):
  """(o_BTNF in q's dtype, lse_BNT float32)."""
  B, T, N, _ = x.q.shape
  F, W, stages = x.v.shape[3], call.block_k, call.stages
  strip = strip_buffer(x.strip, stages, COMPUTE, ROWS, W)
  query = tile_buffers(x, COMPUTE, ROWS, "q column q_segment")
  tiles = tile_buffers(x, stages, W, "k v row k_segment", strip=strip)
  copies = len(tiles) - 1 + (strip is not None)  # a strip for each computing warpgroup
  out = launch(
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
      out=those_given(
        o=plgpu.SMEM((COMPUTE, ROWS, F), x.q.dtype) if F != x.q.shape[3] else None,
        lse=plgpu.SMEM((COMPUTE, ROWS), jnp.float32),
      ),
    ),
  )
  return out["o"], out["lse"]


# --- backward: dq, d column ------------------------------------------------------------------
