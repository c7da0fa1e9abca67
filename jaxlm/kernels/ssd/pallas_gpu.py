"""SSD on Hopper GPUs: a Mosaic GPU kernel forward, XLA backward.

Axes as in api.py. The kernel keeps the states at the starts of the XLA form's chunks; the backward
is that of `xla.py`, chunk after chunk in reverse from these states, so that memory beside the
arguments is one state per chunk.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels import mosaic_support
from jaxlm.kernels.chunked_recurrence import over_mesh, shards, why_not_split
from jaxlm.kernels.interval_halves import FLOOR, near_sums
from jaxlm.kernels.mosaic_support import ROWS
from jaxlm.kernels.pallas_support import round_up
from jaxlm.kernels.ssd import xla

HEAD_DIM, STATE_DIMS, HEADS = 64, (64, 128), 2


def supports(x, b, c, spec=None) -> str | None:
  """None, or the sentence that says why not. x (B, T, N, H), b, c (B, T, K, E): anything with shape
  and dtype; spec: of x on a mesh.
  """
  reason = mosaic_support.why_not_here() or why_not_split(x.shape[0], x.shape[2], spec)
  if reason is not None:
    return reason
  (N, H), (K, E) = x.shape[2:], b.shape[2:]
  if x.dtype not in (jnp.float16, jnp.bfloat16) or not x.dtype == b.dtype == c.dtype:
    return (
      f"x, b and c are {x.dtype}, {b.dtype} and {c.dtype}; it wants one of bfloat16, float16 for all: "
      'set the compute dtype, or use implementation="xla"'
    )
  if H != HEAD_DIM or E not in STATE_DIMS:
    return (
      f"head_dim {H} and state size {E} are not 64 and one of 64, 128, the tiles of its products; use "
      'implementation="xla"'
    )
  parts = shards((*spec, None, None, None)[2]) if spec is not None else 1
  if K > 1 and K % parts:
    return f'{K} groups cannot be split over {parts} devices; use implementation="xla"'
  if N // parts // max(1, K // parts) % HEADS:
    return (
      f"{N} heads in {K} groups on {parts} devices are not pairs of one group, which share a block of "
      'threads; use an even number of heads per group, or implementation="xla"'
    )
  return None


def _neighbour(v, level: int, axis: int):
  """As `interval_halves._neighbour`, outside of a kernel; axis: the last one."""
  halves = v.reshape(*v.shape[:-1], -1, 2, 1 << level)
  return halves[..., ::-1, :].reshape(v.shape)


def _rows(log_a_BTN, dt_BTN, d_N):
  """(B, N, rows, T) float32: what `mosaic_kernels` reads per token."""
  log_a_BNT, dt_BNT = log_a_BTN.swapaxes(1, 2), dt_BTN.swapaxes(1, 2)
  chunks = log_a_BNT.reshape(*log_a_BNT.shape[:2], -1, ROWS)
  near, start, end = near_sums(chunks, 3, _neighbour)
  keep = jnp.broadcast_to(jnp.exp(start[..., -1:]), start.shape)
  rows = [v.reshape(log_a_BNT.shape) for v in (*near, jnp.exp(start), jnp.exp(end))]
  d_BNT = jnp.broadcast_to(d_N[None, :, None], log_a_BNT.shape)
  return jnp.stack([*rows, dt_BNT, d_BNT, keep.reshape(log_a_BNT.shape)], 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ssd(chunk, x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, state_BNHE, d_N):
  return _forward(chunk, x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, state_BNHE, d_N)[0]


def _forward(chunk, x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, state_BNHE, d_N):
  from jaxlm.kernels.ssd import mosaic_kernels as kernels

  y_BTNH, final_BNEH, starts_BCNEH = kernels.forward(
    x_BTNH, b_BTKE, c_BTKE, _rows(log_a_BTN, dt_BTN, d_N), state_BNHE.mT, chunk // ROWS
  )
  saved = x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, d_N, starts_BCNEH
  return (y_BTNH, final_BNEH.mT), saved


def _backward(chunk, saved, cotangents):
  x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, d_N, starts_BCNEH = saved
  dy_BTNH, d_final_BNHE = cotangents
  dx, dlog_a, ddt, db, dc, d_state = xla.backward_from_starts(
    x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, starts_BCNEH, dy_BTNH, d_final_BNHE, chunk
  )
  x, dy = x_BTNH.astype(jnp.float32), dy_BTNH.astype(jnp.float32)
  dx = (dx.astype(jnp.float32) + dy * d_N[None, None, :, None]).astype(x_BTNH.dtype)
  return dx, dlog_a, ddt, db, dc, d_state, jnp.sum(x * dy, (0, 1, 3))


_ssd.defvjp(_forward, _backward)


def ssd(
  x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, state_BNHE, reset_BT, d_N, *, chunk: int, spec=None
):
  """(y_BTNH in x's dtype with d x added, final state_BNHE). chunk: of the backward pass."""
  log_a_BTN = jnp.maximum(log_a_BTN, FLOOR)
  if reset_BT is not None:
    log_a_BTN = jnp.where(reset_BT[..., None], FLOOR, log_a_BTN)
  d_N = jnp.zeros(x_BTNH.shape[2]) if d_N is None else d_N
  T = x_BTNH.shape[1]
  chunk = min(round_up(chunk, ROWS), round_up(T, ROWS))

  # Padding tokens have dt = 0 and log a = 0: they add nothing and forget nothing.
  def pad(v):
    return jnp.pad(v, ((0, 0), (0, -T % chunk)) + ((0, 0),) * (v.ndim - 2))

  arguments = (
    *map(pad, (x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE)),
    state_BNHE.astype(jnp.float32),
    d_N.astype(jnp.float32),
  )
  group = "w" if b_BTKE.shape[2] > 1 else "g"
  fn = functools.partial(_ssd, chunk)
  y_BTNH, state_BNHE = over_mesh(fn, arguments, f"www{group}{group}sn", "ws", spec)
  return y_BTNH[:, :T], state_BNHE
