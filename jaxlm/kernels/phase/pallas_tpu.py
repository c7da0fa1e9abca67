"""The TPU kernels of `carope_rotate`: what they cover, their arguments and their gradient.

Axes: B batch, T time, N query heads, K kv heads, H head_dim, P = H / 2 channel pairs, E rows of
exponents, L = K P, F = K H, M = N H.

Kept for the backward pass: log f, the phases before the blocks, and the turned q and k, which
attention keeps anyway. Phases, sines and cosines exist on chip only.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.pallas_support import LANES, vmem_bytes, why_not_here
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
  if H not in blocks.HEAD_DIMS or K * H % (2 * LANES):
    return (
      f"{K} kv heads of {H} channels on a device: head_dim must be one of {', '.join(map(str, blocks.HEAD_DIMS))} "
      'and all heads together a multiple of 256 channels; use implementation="xla"'
    )
  if N != K and H % LANES:
    return (
      f"{N} query heads share {K} kv heads of {H} channels; with shared heads head_dim must be a "
      'multiple of 128; use implementation="xla"'
    )
  found = _tokens(T // shards[1], N * H, K * H, q.dtype)
  need, most = (
    blocks.vmem_bytes(found, N * H, K * H, q.dtype.itemsize),
    vmem_bytes(target_device_kind()),
  )
  if need > most:
    return (
      f"{N} + {K} heads of {H} channels need {need >> 20} MiB of on-chip memory and it takes at most "
      f'{most >> 20}; use implementation="xla"'
    )
  return None


def _tokens(T: int, width: int, kv_width: int, dtype) -> int:
  kind = target_device_kind()
  return blocks.tokens(kind, T, width, kv_width, jnp.dtype(dtype).itemsize, vmem_bytes(kind))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rotate(channels: Channels, q_BTM, k_BTF, rows_BET, segment_B8T, initial_B1L):
  return _forward(channels, q_BTM, k_BTF, rows_BET, segment_B8T, initial_B1L)[0]


def _forward(channels, q_BTM, k_BTF, rows_BET, segment_B8T, initial_B1L):
  q_BTM, k_BTF, carries, final_B1L = kernels.forward(
    channels, q_BTM, k_BTF, rows_BET, segment_B8T, initial_B1L
  )
  return (q_BTM, k_BTF, final_B1L), (q_BTM, k_BTF, rows_BET, segment_B8T, carries)


def _backward(channels, residuals, gradients):
  dq_BTM, dk_BTF, d_rows_BET, d_initial_B1L = kernels.backward(channels, *residuals, *gradients)
  return dq_BTM, dk_BTF, d_rows_BET, None, d_initial_B1L


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
  tokens = _tokens(T, N * H, K * H, q_BTNH.dtype)
  channels = Channels(N, K, H, ladder_start, inclusive, tokens)
  padding = -T % tokens

  def wide(x_BTNH):
    return jnp.pad(x_BTNH.reshape(B, T, -1), ((0, 0), (0, padding), (0, 0)))

  adds_BT = jnp.zeros((B, T)) if mask_BT is None else jnp.where(mask_BT > 0, 0.0, NOTHING)
  rows_BET = jnp.concatenate(
    [
      jnp.pad(log_f_BTK.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding))),
      jnp.pad(adds_BT, ((0, 0), (0, padding)), constant_values=NOTHING)[:, None],
      jnp.zeros((B, channels.table_rows - K - 1, T + padding)),
    ],
    axis=1,
  )
  segment_B8T = None if segment_ids_BT is None else _segment_rows(segment_ids_BT, T + padding)
  q_BTM, k_BTF, final_B1L = _rotate(
    channels, wide(q_BTNH), wide(k_BTKH), rows_BET, segment_B8T, initial_BKP.reshape(B, 1, -1)
  )
  return (
    q_BTM[:, :T].reshape(q_BTNH.shape),
    k_BTF[:, :T].reshape(k_BTKH.shape),
    final_B1L.reshape(initial_BKP.shape),
  )
