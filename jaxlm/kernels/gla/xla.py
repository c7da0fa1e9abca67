"""Gated linear attention by chunks: matrix products between blocks of a chunk, exact exponents
inside a block.

Axes: B batch, T time, N heads, H key width, E value width, C tokens of a chunk, G blocks of a
chunk, S tokens of a block. Every exponent is a sum of log decays between two tokens, formed by
adding and never by subtracting two cumulative sums: it is at most 0, so nothing overflows at any
decay, and it is as exact as its own size.
"""

import jax
import jax.numpy as jnp

from jaxlm.kernels.gla.chunks import by_chunk, segsum, whole

BLOCK = 16


def gla(q_BTNH, k_BTNH, v_BTNE, log_decay_BTNH, state_BNHE, ids_BT, chunk):
  """As `reference.gla`."""
  T = q_BTNH.shape[1]
  chunks, ids_CBT = by_chunk((q_BTNH, k_BTNH, v_BTNE, log_decay_BTNH), ids_BT, chunk)

  def body(carry, piece):
    state, owner_B = carry
    (q, k, v, a), ids = piece
    o, state = _chunk(q, k, v, a, state, ids, owner_B)
    return (state, ids[:, -1]), o

  (state_BNHE, _), o = jax.lax.scan(
    jax.checkpoint(body, prevent_cse=False), (state_BNHE, ids_BT[:, 0]), (chunks, ids_CBT)
  )
  return whole(o, T), state_BNHE


def _chunk(q_BNCH, k_BNCH, v_BNCE, a_BNCH, state_BNHE, ids_BC, owner_B):
  C = q_BNCH.shape[2]
  size = BLOCK if C % BLOCK == 0 else C

  def blocks(x):
    return x.reshape(*x.shape[:2], C // size, size, x.shape[-1])

  def flat(x):
    return x.reshape(*x.shape[:2], C, x.shape[-1])

  q, k, a = blocks(q_BNCH), blocks(k_BNCH), blocks(a_BNCH)  # (B, N, G, S, H)
  up_BNGSH = jnp.cumsum(a, 3)  # from the block's start, token included
  down_BNGSH = _after(a, 3)  # to the block's end, token excluded
  total_BNGH = up_BNGSH[:, :, :, -1]
  between_BNHGG = segsum(jnp.moveaxis(total_BNGH, 2, 3))  # [g, j]: blocks j + 1 .. g
  G = C // size

  # Within a block: exact pairwise exponents.
  inside = jnp.exp(segsum(jnp.moveaxis(a, 3, 4)))  # (B, N, G, H, S, S), 0 above the diagonal
  diagonal_BNGSS = jnp.einsum("bngih,bngjh,bnghij->bngij", q, k, inside)
  # Across blocks j < g: exp(up_i) . exp(down_j + blocks strictly between).
  zero = jnp.full((*between_BNHGG.shape[:3], 1, G), -jnp.inf)
  gap_BNHGG = jnp.concatenate(
    [zero, between_BNHGG[..., :-1, :]], 3
  )  # [g, j]: blocks j + 1 .. g - 1, -inf if j >= g
  far_BNGJSH = jnp.exp(down_BNGSH[:, :, None] + jnp.moveaxis(gap_BNHGG, 2, 4)[:, :, :, :, None])
  across = jnp.einsum("bngih,bngjsh->bngijs", q * jnp.exp(up_BNGSH), k[:, :, None] * far_BNGJSH)
  same_G1G1 = jnp.eye(G, dtype=bool)[
    :, None, :, None
  ]  # a sum and no scatter, which is slow on a TPU
  scores = across + jnp.where(same_G1G1[None, None], diagonal_BNGSS[:, :, :, :, None], 0)
  scores_BNCC = scores.reshape(*scores.shape[:2], C, C) * (
    ids_BC[:, None, :, None] == ids_BC[:, None, None]
  )

  before_BNGH = jnp.flip(_after(jnp.flip(total_BNGH, 2), 2), 2)
  from_start = flat(jnp.exp(up_BNGSH + before_BNGH[:, :, :, None]))
  to_end = flat(jnp.exp(down_BNGSH + _after(total_BNGH, 2)[:, :, :, None]))
  own, last = ids_BC == owner_B[:, None], ids_BC == ids_BC[:, -1:]
  o = jnp.einsum("bnij,bnje->bnie", scores_BNCC, v_BNCE)
  o += jnp.einsum("bnih,bnhe->bnie", q_BNCH * from_start * own[:, None, :, None], state_BNHE)
  keep = jnp.exp(total_BNGH.sum(2)) * (ids_BC[:, -1] == owner_B)[:, None, None]
  state = keep[..., None] * state_BNHE + jnp.einsum(
    "bnjh,bnje->bnhe", k_BNCH * to_end * last[:, None, :, None], v_BNCE
  )
  return o, state


def _after(a, axis):
  """Sum of what follows along the axis, itself excluded."""
  rest = jnp.flip(jnp.cumsum(jnp.flip(a, axis), axis), axis)
  shifted = jax.lax.slice_in_dim(rest, 1, None, axis=axis)
  return jnp.concatenate([shifted, jnp.zeros_like(jax.lax.slice_in_dim(a, 0, 1, axis=axis))], axis)
