"""The forward pass of SSD as a Mosaic GPU kernel for Hopper.

Axes as in api.py; of one chunk: Q and R two positions (query and source), Q = 64.

A block of threads has the two heads of one computing warpgroup each, which share B and C, and walks
over the chunks; the states (E, H) stay in registers, 64 rows of E at a time. With u = dt x and the chunk's own decays,

  y_Q = sum_{R <= Q} a(R, Q] (C_Q . B_R) u_R + a(0, Q] C_Q S + d x_Q,
  S  <- a(0, last] S + sum_R a(R, last] B_R (x) u_R.

The logarithm of a(R, Q] is near_l[R] + near_l[Q] at the highest bit l in which R and Q differ
(`kernels.interval_halves`): a sum of its own terms. These numbers per token come from outside, as
rows of one array.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxlm.kernels import mosaic_pipeline as pipeline
from jaxlm.kernels.mosaic_pipeline import (
  COMPUTE,
  add_product,
  load_along,
  position,
  spread,
  wgmma_layout,
)
from jaxlm.kernels.mosaic_support import ROWS, interpreter

LEVELS = ROWS.bit_length() - 1
#: Rows after the LEVELS of near: a(0, Q], a(R, last], dt, d, a(0, last].
START, END, DT, D, KEEP = range(LEVELS, LEVELS + 5)
NUM_ROWS = LEVELS + 5
STAGES = 2


def _decays(rows):
  """a(R, Q] dt_R for R <= Q, plus nothing where R > Q."""
  shape = (ROWS, ROWS)
  q, r = position(shape, 0), position(shape, 1)
  log_a = pipeline.whole(0.0, shape)
  for level in range(LEVELS):  # the last one in which they differ is the highest
    near = [spread(load_along(rows.at[level], axis), shape, axis) for axis in (0, 1)]
    log_a = jnp.where((q ^ r) >= (1 << level), near[0] + near[1], log_a)
  dt = spread(load_along(rows.at[DT], 1), shape, 1)
  return jnp.where(q >= r, jnp.exp(log_a) * dt, 0.0)


def _body(
  x_ref,
  b_ref,
  c_ref,
  rows_ref,
  state_ref,
  y_ref,
  final_ref,
  starts_ref,
  *,
  tiles,
  low_state,
  u,
  y,
  wide,
  barriers,
  every: int,
):
  batch, wg = jax.lax.axis_index("batch"), jax.lax.axis_index("wg")
  first_head = jax.lax.axis_index("pair") * COMPUTE
  group = first_head // (x_ref.shape[2] // b_ref.shape[2])
  count, (E, H) = x_ref.shape[1] // ROWS, state_ref.shape[2:]
  low = x_ref.dtype

  @pl.when(wg < COMPUTE)
  def _():
    plgpu.set_max_registers(pipeline.COMPUTE_REGISTERS, action="increase")
    head = first_head + wg
    state_smem, u_smem, y_smem, out_smem = (ref.at[wg] for ref in (low_state, u, y, wide))
    halves = [pl.ds(start, ROWS) for start in range(0, E, ROWS)]

    def write(state, into):
      for at, part in zip(halves, state):
        plgpu.wait_smem_to_gmem(0)
        out_smem[...] = part
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, into.at[at])

    def step(n, state):
      slot = pipeline.slot_of(n, STAGES)
      x, rows = (tiles[name].at[slot, wg] for name in ("x", "rows"))
      b, c = (tiles[name].at[slot] for name in ("b", "c"))

      @pl.when(jax.lax.rem(n, jnp.int32(every)) == 0)
      def _():
        write(state, starts_ref.at[batch, n // every, head])

      for at, part in zip(halves, state):
        state_smem.at[at][...] = wgmma_layout(part.astype(low))
      plgpu.barrier_wait(barriers[0].at[slot])

      def x_QH():
        return plgpu.load(x, layout=plgpu.Layout.WGMMA).astype(jnp.float32)

      weight = load_along(rows.at[END], 0) * load_along(rows.at[DT], 0)
      u_smem[...] = wgmma_layout((x_QH() * spread(weight, (ROWS, H), 0)).astype(low))
      plgpu.commit_smem()
      score = pipeline.product(c, b.transpose((1, 0)), (ROWS, ROWS))
      score = (score * _decays(rows)).astype(low)
      out = pipeline.product(c, state_smem, (ROWS, H))
      out = out * spread(load_along(rows.at[START], 0), (ROWS, H), 0)
      out = add_product(out, score, x)
      out = out + x_QH() * spread(load_along(rows.at[D], 0), (ROWS, H), 0)
      # Of any axis: all numbers of this row are one.
      keep = load_along(rows.at[KEEP, pl.ds(0, H)], 1)
      keep = spread(keep, (ROWS, H), 1)
      state = tuple(
        add_product(part * keep, b.at[:, at].transpose((1, 0)), u_smem)
        for at, part in zip(halves, state)
      )
      pipeline.release(barriers[1].at[slot], True)
      plgpu.wait_smem_to_gmem(0)  # the tile of the chunk before
      y_smem[...] = wgmma_layout(out.astype(low))
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(y_smem, y_ref.at[batch, pl.ds(n * ROWS, ROWS), head])
      return state

    state = tuple(
      plgpu.load(state_ref.at[batch, head, at], layout=plgpu.Layout.WGMMA, optimized=False)
      for at in halves
    )
    write(jax.lax.fori_loop(0, count, step, state), final_ref.at[batch, head])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == COMPUTE)
  def _():
    plgpu.set_max_registers(pipeline.MEMORY_REGISTERS, action="decrease")

    def load(n, slot, _):
      at, barrier = pl.ds(n * ROWS, ROWS), barriers[0].at[slot]
      for name, ref in (("b", b_ref), ("c", c_ref)):
        plgpu.copy_gmem_to_smem(ref.at[batch, at, group], tiles[name].at[slot], barrier)
      for i in range(COMPUTE):
        plgpu.copy_gmem_to_smem(
          x_ref.at[batch, at, first_head + i], tiles["x"].at[slot, i], barrier
        )
        plgpu.copy_gmem_to_smem(
          rows_ref.at[batch, first_head + i, :, at], tiles["rows"].at[slot, i], barrier
        )

    pipeline.produce(count, STAGES, load, (barriers[1],))


def forward(x_BTNH, b_BTKE, c_BTKE, rows_BNRT, state_BNEH, every: int):
  """(y_BTNH in x's dtype, final state_BNEH, starts_BCNEH: the state before every `every`-th chunk of 64
  tokens). T is a multiple of 64 `every`, N of two.
  """
  B, T, N, H = x_BTNH.shape
  E, low = b_BTKE.shape[3], x_BTNH.dtype
  return plgpu.kernel(
    functools.partial(_body, every=every),
    out_type=[
      jax.ShapeDtypeStruct(x_BTNH.shape, low),
      jax.ShapeDtypeStruct(state_BNEH.shape, jnp.float32),
      jax.ShapeDtypeStruct((B, T // (ROWS * every), N, E, H), jnp.float32),
    ],
    scratch_types=dict(
      tiles=dict(
        x=pipeline.tile((STAGES, COMPUTE, ROWS, H), low),
        rows=plgpu.SMEM((STAGES, COMPUTE, NUM_ROWS, ROWS), jnp.float32),
        b=pipeline.tile((STAGES, ROWS, E), low),
        c=pipeline.tile((STAGES, ROWS, E), low),
      ),
      low_state=pipeline.tile((COMPUTE, E, H), low),
      u=pipeline.tile((COMPUTE, ROWS, H), low),
      y=pipeline.tile((COMPUTE, ROWS, H), low),
      wide=pipeline.wide_tile((COMPUTE, ROWS, H)),
      barriers=pipeline.barriers(STAGES, 2 + 2 * COMPUTE),
    ),
    grid=(N // COMPUTE, B),
    grid_names=("pair", "batch"),
    num_threads=COMPUTE + 1,
    thread_name="wg",
    kernel_name="ssd_forward",
    compiler_params=pipeline.PARAMETERS,
    interpret=interpreter(),
  )(x_BTNH, b_BTKE, c_BTKE, rows_BNRT, state_BNEH)
