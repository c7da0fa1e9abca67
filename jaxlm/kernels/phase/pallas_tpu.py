"""The TPU kernels of `carope_rotate`: what they cover, their arguments and their gradient.

Axes: B batch, T time, N query heads, K kv heads, H head_dim, P channel pairs, E rows of exponents, L
= K H, M = N H.

Kept for the backward pass: log f, the phases before the blocks, and the turned q and k, which
attention keeps anyway. Phases, sines and cosines exist on chip only.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.pallas_support import round_up, vmem_bytes, why_not_here
from jaxlm.kernels.phase import blocks
from jaxlm.kernels.phase import pallas_kernels as kernels
from jaxlm.kernels.phase.blocks import STEP
from jaxlm.kernels.phase.pallas_kernels import NOTHING, Channels
from jaxlm.kernels.phase.reference import segment_starts
from jaxlm.kernels.platform import target_device_kind


def supports(q, k, rotary_dim: int, segment_ids=None, spec=None) -> str | None:
  """None, or the sentence that says why not. q (B, T, N, H), k (B, T, K, H): anything with shape and
  dtype. spec: PartitionSpec of log f (B, T, K)."""
  reason = why_not_here()
  if reason is not None:
    return reason
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1 and spec is None:
    return "the compiler does not partition it: under a mesh of several devices pass spec, that of log_f"
  shards = [1, 1, 1]
  if mesh.size > 1:
    for axis, names in enumerate((*spec, None, None, None)[:3]):
      for name in () if names is None else (names,) if isinstance(names, str) else names:
        shards[axis] *= mesh.shape.get(name, 1)
  (B, T, N, H), K = q.shape, k.shape[2]
  for what, size, ways in (("batch", B, shards[0]), ("length", T, shards[1]), ("kv heads", K, shards[2])):
    if size % ways:
      return f'{what} {size} do not divide over {ways} devices; use implementation="xla"'
  if q.dtype not in (jnp.bfloat16, jnp.float32) or q.dtype != k.dtype:
    return f"q is {q.dtype} and k {k.dtype}; it wants bfloat16 or float32 for both"
  W, K, N = blocks.columns(H), K // shards[2], N // shards[2]
  if W > blocks.MOST_COLUMNS or (K * H) % W:
    return (
      f"{K} kv heads of {H} channels on a device are not whole groups of {W} channels, a multiple of "
      f'128 lanes; use implementation="xla", or a multiple of {W // H} kv heads per device'
    )
  if N != K and W != H:
    return (
      f"{N} query heads share {K} kv heads of {H} channels; with shared heads head_dim must be a "
      'multiple of 128; use implementation="xla"'
    )
  found = _tokens(T // shards[1], N * H, K * H, q.dtype)
  need, most = (
    blocks.vmem_bytes(found, N * H, K * H, q.dtype.itemsize, W),
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
def _rotate(channels: Channels, q_BTM, k_BTL, rows_BET, segment_B8T, initial_B1L):
  return _forward(channels, q_BTM, k_BTL, rows_BET, segment_B8T, initial_B1L)[0]


def _forward(channels, q_BTM, k_BTL, rows_BET, segment_B8T, initial_B1L):
  q_BTM, k_BTL, carries, final_B1L = kernels.forward(
    channels, q_BTM, k_BTL, rows_BET, segment_B8T, initial_B1L
  )
  return (q_BTM, k_BTL, final_B1L), (q_BTM, k_BTL, rows_BET, segment_B8T, carries)


def _backward(channels, residuals, gradients):
  dq_BTM, dk_BTL, d_rows_BET, d_initial_B1L = kernels.backward(channels, *residuals, *gradients)
  return dq_BTM, dk_BTL, d_rows_BET, None, d_initial_B1L


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
  del chunk
  (B, T, N, H), K = q_BTNH.shape, k_BTKH.shape[2]
  tokens = _tokens(T, N * H, K * H, q_BTNH.dtype)
  channels = Channels(
    N, K, H, rotary_dim, layout, ladder_start, inclusive, blocks.columns(H), tokens
  )
  padded = round_up(T, tokens)

  def wide(x_BTNH):
    return jnp.pad(x_BTNH.reshape(B, T, -1), ((0, 0), (0, padded - T), (0, 0)))

  adds_BT = jnp.ones((B, T), jnp.float32) if mask_BT is None else mask_BT
  adds_BT = jnp.pad(jnp.where(adds_BT > 0, 0.0, NOTHING), ((0, 0), (0, padded - T)), constant_values=NOTHING)
  rows_BET = jnp.concatenate(
    [
      jnp.pad(log_f_BTK.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - T))),
      adds_BT[:, None],
      jnp.full((B, 1, padded), NOTHING),
      jnp.zeros((B, channels.table_rows - K - 2, padded)),
    ],
    axis=1,
  )
  segment_B8T = None if segment_ids_BT is None else _segment_rows(segment_ids_BT, padded)
  first = channels.first_channels()
  # Both channels of a pair start with its phase; the first one's is read at the end.
  initial_BKH = jnp.zeros((B, K, H)).at[:, :, first].set(initial_BKP)
  initial_BKH = initial_BKH.at[:, :, channels.second_channels()].set(initial_BKP)
  q_BTM, k_BTL, final_B1L = _rotate(
    channels, wide(q_BTNH), wide(k_BTKH), rows_BET, segment_B8T, initial_BKH.reshape(B, 1, -1)
  )
  return (
    q_BTM[:, :T].reshape(q_BTNH.shape),
    k_BTL[:, :T].reshape(k_BTKH.shape),
    final_B1L.reshape(B, K, H)[:, :, first],
  )
