"""The TPU kernels of `carope_rotate`: what they cover, their arguments and their gradient.

Axes: B batch, T time, N query heads, K kv heads, H head_dim, P = H / 2 channel pairs, L = K P,
F = K H, M = N H; E = K + 1 rows: log f of every kv head, and what is added to every exponent.

Kept for the backward pass: log f, the phases before the blocks, and the turned q and k, which
attention keeps anyway. Phases, sines and cosines exist on chip only.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.pallas_support import vmem_bytes, why_not_here
from jaxlm.kernels.phase import blocks
from jaxlm.kernels.phase import pallas_kernels as kernels
from jaxlm.kernels.phase.blocks import STEP
from jaxlm.kernels.phase.pallas_kernels import NOTHING, Channels
from jaxlm.kernels.phase.reference import segment_starts
from jaxlm.kernels.platform import target_device_kind


def supports(q, k, rotary_dim: int, layout: str, spec=None) -> str | None:
  """None, or the sentence that says why not. q (B, T, N, H), k (B, T, K, H): anything with shape and
  dtype. spec: PartitionSpec of log f (B, T, K)."""
  reason = why_not_here()
  if reason is not None:
    return reason
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1 and spec is None:
    return (
      "the compiler does not partition it: under a mesh of several devices pass spec, that of log_f"
    )
  shards = [1, 1, 1]
  if mesh.size > 1:
    for axis, names in enumerate((*spec, None, None, None)[:3]):
      for name in () if names is None else (names,) if isinstance(names, str) else names:
        shards[axis] *= mesh.shape.get(name, 1)
  (B, T, N, H), K = q.shape, k.shape[2]
  for what, size, ways in (
    ("batch", B, shards[0]),
    ("length", T, shards[1]),
    ("kv heads", K, shards[2]),
  ):
    if size % ways:
      return f'{what} {size} do not divide over {ways} devices; use implementation="xla"'
  if q.dtype not in (jnp.bfloat16, jnp.float32) or q.dtype != k.dtype:
    return f"q is {q.dtype} and k {k.dtype}; it wants bfloat16 or float32 for both"
  K, N = K // shards[2], N // shards[2]
  if layout != "half" or rotary_dim != H:
    return (
      f'it turns whole heads in layout "half", not {rotary_dim} of {H} channels in layout {layout!r}; '
      'use implementation="xla"'
    )
  if H % blocks.HEAD_MULTIPLE:
    return (
      f"head_dim is {H} and must be a multiple of {blocks.HEAD_MULTIPLE}: half a head fills whole "
      'registers; use implementation="xla"'
    )
  found = _tokens(T // shards[1], N, K, H, q.dtype)
  need, most = (
    blocks.vmem_bytes(found, N, K, H, q.dtype.itemsize),
    vmem_bytes(target_device_kind()),
  )
  if need > most:
    return (
      f"{N} + {K} heads of {H} channels need {need >> 20} MiB of on-chip memory and it takes at most "
      f'{most >> 20}; use implementation="xla"'
    )
  return None


def _tokens(T: int, N: int, K: int, H: int, dtype) -> int:
  kind = target_device_kind()
  return blocks.tokens(kind, T, N, K, H, jnp.dtype(dtype).itemsize, vmem_bytes(kind))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rotate(channels: Channels, q_BMT, k_BFT, rows_BE1T, segment_B8T, initial_B1L):
  return _forward(channels, q_BMT, k_BFT, rows_BE1T, segment_B8T, initial_B1L)[0]


def _forward(channels, q_BMT, k_BFT, rows_BE1T, segment_B8T, initial_B1L):
  q_BMT, k_BFT, carries, final_B1L = kernels.forward(
    channels, q_BMT, k_BFT, rows_BE1T, segment_B8T, initial_B1L
  )
  return (q_BMT, k_BFT, final_B1L), (q_BMT, k_BFT, rows_BE1T, segment_B8T, carries)


def _backward(channels, residuals, gradients):
  dq_BMT, dk_BFT, d_rows_BE1T, d_initial_B1L = kernels.backward(channels, *residuals, *gradients)
  return dq_BMT, dk_BFT, d_rows_BE1T, None, d_initial_B1L


_rotate.defvjp(_forward, _backward)


def _segment_rows(segment_ids_BT, T: int):
  """(B, 8, T) float32: where a token's segment starts, whether the token before its step of tokens
  is in it, and whether the token behind that step is."""
  start_BT = segment_starts(segment_ids_BT)
  start_BT = jnp.pad(start_BT, ((0, 0), (0, T - start_BT.shape[1])), mode="edge")
  start_BCS = start_BT.reshape(start_BT.shape[0], -1, STEP)
  before = jnp.pad(start_BCS[:, :-1, -1:], ((0, 0), (1, 0), (0, 0)))
  after = jnp.concatenate([start_BCS[:, 1:, :1], start_BCS[:, -1:, -1:]], axis=1)
  rows = [start_BCS, start_BCS == before, start_BCS == after]
  rows = [row.astype(jnp.float32).reshape(start_BT.shape) for row in rows]
  return jnp.stack(rows + [jnp.zeros_like(rows[0])] * (8 - len(rows)), axis=1)


def carope_rotate(
  q_BTNH,
  k_BTKH,
  log_f_BTK,
  mask_BT,
  segment_ids_BT,
  initial_BKP,
  *,
  rotary_dim,
  layout,
  num_pairs,
  ladder_start,
  inclusive,
  chunk,
):
  """As reference.carope_rotate. chunk is not used: sums of 128 tokens are joined."""
  del chunk, rotary_dim, layout, num_pairs  # all pairs, (first half, second half)
  (B, T, N, H), K = q_BTNH.shape, k_BTKH.shape[2]
  tokens = _tokens(T, N, K, H, q_BTNH.dtype)
  channels = Channels(N, K, H, ladder_start, inclusive, tokens)
  padding = -T % tokens

  def time_last(x_BTNH):
    x_BMT = x_BTNH.transpose(0, 2, 3, 1).reshape(B, -1, T)
    return jnp.pad(x_BMT, ((0, 0), (0, 0), (0, padding)))

  def time_second(x_BMT, like):
    return x_BMT[..., :T].reshape(B, *like.shape[2:], T).transpose(0, 3, 1, 2)

  adds_BT = jnp.zeros((B, T)) if mask_BT is None else jnp.where(mask_BT > 0, 0.0, NOTHING)
  rows_BE1T = jnp.concatenate(
    [
      jnp.pad(log_f_BTK.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding))),
      jnp.pad(adds_BT, ((0, 0), (0, padding)), constant_values=NOTHING)[:, None],
    ],
    axis=1,
  )[:, :, None]
  segment_B8T = None if segment_ids_BT is None else _segment_rows(segment_ids_BT, T + padding)
  q_BMT, k_BFT, final_B1L = _rotate(
    channels,
    time_last(q_BTNH),
    time_last(k_BTKH),
    rows_BE1T,
    segment_B8T,
    initial_BKP.reshape(B, 1, -1),
  )
  return (
    time_second(q_BMT, q_BTNH),
    time_second(k_BFT, k_BTKH),
    final_B1L.reshape(initial_BKP.shape),
  )
