"""The products of a SwiGLU fast weight that share their tokens, with what follows them element by
element, as one Mosaic GPU kernel for Hopper.

Axes: G fast weights (rows times heads), C tokens, F inner width, H width of a head; W channels of F
of one tile.

  read: silu(q W0') * (q W2');   step: with y0 = k W0', y2 = k W2', g = v W1, S = silu(y0),
  (g y2 S'(y0) eta0, g S eta2, S y2 eta1)

Two computing warpgroups have 64 tokens each; the width H passes by in steps of 64. The products
y0, y2 and g stay in registers: what reaches memory is what the next products read, in their dtype.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxlm.kernels import mosaic_pipeline as pipeline
from jaxlm.kernels.mosaic_pipeline import COMPUTE, add_product, load_along, spread, wgmma_layout
from jaxlm.kernels.mosaic_support import ROWS, interpreter

STAGES, TOKENS = 2, COMPUTE * ROWS
READ_WIDTH, STEP_WIDTH = 128, 64  # channels of a tile: as many as registers allow


def width(F: int, most: int) -> int:
  return most if F % most == 0 else ROWS


def _sigmoid(y):
  return 1 / (1 + jnp.exp(-y))


def _read(y, _):
  y0, y2 = y
  yield y0 * _sigmoid(y0) * y2


def _step(y, rates):
  y0, y2, g = y

  def rate(i):
    return spread(load_along(rates.at[i], 0), y0.shape, 0)

  s = _sigmoid(y0)
  yield g * y2 * (s * (1 + y0 * (1 - s))) * rate(0)
  yield y0 * s * y2 * rate(1)
  yield g * y0 * s * rate(2)


def _body(*refs, names, outs, after, W, tiles, rates, out, barriers, rate_barriers):
  refs = dict(zip(names, refs))
  fast, wg = jax.lax.axis_index("fast"), jax.lax.axis_index("wg")
  start, column = jax.lax.axis_index("tokens") * TOKENS, jax.lax.axis_index("width") * W
  count = refs["w0"].shape[2] // ROWS
  shape, first = (ROWS, W), "k" if "k" in refs else "q"

  @pl.when(wg < COMPUTE)
  def _():
    plgpu.set_max_registers(232, action="increase")
    own = pl.ds(start + wg * ROWS, ROWS)
    if "eta" in refs:
      barrier = rate_barriers.at[wg]
      plgpu.copy_gmem_to_smem(refs["eta"].at[fast, :, own], rates.at[wg], barrier)
      plgpu.barrier_wait(barrier)

    def step(n, y):
      slot = pipeline.slot_of(n, STAGES)
      plgpu.barrier_wait(barriers[0].at[slot])
      x, w0, w2 = tiles[first].at[slot, wg], tiles["w0"].at[slot], tiles["w2"].at[slot]
      y = [
        add_product(y[0], x, w0.transpose((1, 0))),
        add_product(y[1], x, w2.transpose((1, 0))),
      ] + [add_product(g, tiles["v"].at[slot, wg], tiles["w1"].at[slot]) for g in y[2:]]
      pipeline.release(barriers[1].at[slot], False)
      return tuple(y)

    zeros = tuple(pipeline.whole(0.0, shape) for _ in range(3 if "v" in refs else 2))
    y = jax.lax.fori_loop(0, count, step, zeros)
    place = out.at[wg]
    for name, value in zip(outs, after(y, rates.at[wg] if "eta" in refs else None)):
      plgpu.wait_smem_to_gmem(0)
      place[...] = wgmma_layout(value.astype(place.dtype))
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(place, refs[name].at[fast, own, pl.ds(column, W)])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == COMPUTE)
  def _():
    plgpu.set_max_registers(40, action="decrease")

    def load(n, slot, _):
      deep, barrier, here = pl.ds(n * ROWS, ROWS), barriers[0].at[slot], pl.ds(column, W)
      for name in (first, "v"):
        for i in range(COMPUTE if name in refs else 0):
          rows = pl.ds(start + i * ROWS, ROWS)
          plgpu.copy_gmem_to_smem(refs[name].at[fast, rows, deep], tiles[name].at[slot, i], barrier)
      for name in ("w0", "w2"):
        plgpu.copy_gmem_to_smem(refs[name].at[fast, here, deep], tiles[name].at[slot], barrier)
      if "w1" in refs:
        plgpu.copy_gmem_to_smem(refs["w1"].at[fast, deep, here], tiles["w1"].at[slot], barrier)

    pipeline.produce(count, STAGES, load, (barriers[1],))


def _run(name, ins: dict, outs: tuple, after, W: int):
  low, (G, F, _) = ins["w0"].dtype, ins["w0"].shape
  C = ins[next(iter(ins))].shape[1]
  tiles = {key: pipeline.tile((STAGES, COMPUTE, ROWS, ROWS), low) for key in ins if key in "qkv"}
  tiles |= {key: pipeline.tile((STAGES, W, ROWS), low) for key in ("w0", "w2")}
  if "w1" in ins:
    tiles["w1"] = pipeline.tile((STAGES, ROWS, W), low)
  copies = sum(COMPUTE if key in "qkv" else 1 for key in tiles)
  results = plgpu.kernel(
    functools.partial(_body, names=(*ins, *outs), outs=outs, after=after, W=W),
    out_type=[jax.ShapeDtypeStruct((G, C, F), low)] * len(outs),
    scratch_types=dict(
      tiles=tiles,
      rates=plgpu.SMEM((COMPUTE, 3, ROWS), jnp.float32),
      out=pipeline.tile((COMPUTE, ROWS, W), low),
      barriers=pipeline.barriers(STAGES, copies),
      rate_barriers=plgpu.Barrier(num_barriers=COMPUTE),
    ),
    grid=(F // W, C // TOKENS, G),
    grid_names=("width", "tokens", "fast"),
    num_threads=COMPUTE + 1,
    thread_name="wg",
    kernel_name=name,
    compiler_params=pipeline.PARAMETERS,
    interpret=interpreter(),
  )(*ins.values())
  return results


def read(w0_GFH, w2_GFH, q_GCH):
  """silu(q W0') * (q W2'), (G, C, F). All of one dtype of 2 bytes; C a multiple of 128, F and H of 64."""
  ins = dict(q=q_GCH, w0=w0_GFH, w2=w2_GFH)
  return _run("fast_weight_read", ins, ("out",), _read, width(w0_GFH.shape[1], READ_WIDTH))[0]


def step(w0_GFH, w1_GHF, w2_GFH, k_GCH, v_GCH, eta_G3C):
  """(dy0 eta0, hidden eta1, dy2 eta2), each (G, C, F), in the dtype of the rest; eta float32."""
  ins = dict(k=k_GCH, v=v_GCH, w0=w0_GFH, w1=w1_GHF, w2=w2_GFH, eta=eta_G3C)
  names = "dy0", "hidden", "dy2"
  return _run("fast_weight_step", ins, names, _step, width(w0_GFH.shape[1], STEP_WIDTH))
