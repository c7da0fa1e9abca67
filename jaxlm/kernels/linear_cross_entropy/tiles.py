"""Row log-partitions by tiles of rows and words, for processors whose cache holds a tile of logits.

Axes: T rows, Q rows of a tile, D d_model, V vocabulary, W words of a tile.

With a the logits of one tile, m the running maximum and s the running sum of a row,
  m' = max(m, max_w a_w),  s' = s exp(m - m') + sum_w exp(a_w - m'),  log_z = m + log s   at the
  end.
"""

import dataclasses

import jax
import jax.numpy as jnp

LOWEST = -1e30  # in place of -inf, whose difference from itself is not a number


@dataclasses.dataclass(frozen=True)
class Tile:
  """rows: at most so many at once. step: what is left over is rounded up to a multiple of it.

  words: of the vocabulary.
  """

  rows: int
  step: int
  words: int


def log_z(h_TD, w_VD, bias_V, count, *, softcap, tile: Tile):
  """log_z_T float32 of the first `count` (int32) rows; what stands behind them means nothing.

  Not differentiable.
  """
  T, V = h_TD.shape[0], w_VD.shape[0]
  bias_V = jnp.zeros(V, jnp.float32) if bias_V is None else bias_V.astype(jnp.float32)
  most = min(tile.rows, T)
  h_TD = jnp.pad(h_TD, ((0, most), (0, 0)))  # the last tile may reach over the end

  def of_rows(h_QD):
    def add(sums, w_WD, bias_W):
      m_Q, s_Q = sums
      a_WQ = (
        jnp.einsum("wd,qd->wq", w_WD, h_QD, preferred_element_type=jnp.float32) + bias_W[:, None]
      )
      a_WQ = a_WQ if softcap is None else softcap * jnp.tanh(a_WQ / softcap)
      higher_Q = jnp.maximum(m_Q, jnp.max(a_WQ, 0))
      return higher_Q, s_Q * jnp.exp(m_Q - higher_Q) + jnp.sum(jnp.exp(a_WQ - higher_Q[None]), 0)

    words, whole = min(tile.words, V), V // min(tile.words, V)

    def cut(x, n):
      return jax.lax.dynamic_slice_in_dim(x, n * words, words)

    sums = jnp.full(h_QD.shape[0], LOWEST), jnp.zeros(h_QD.shape[0])
    sums = jax.lax.fori_loop(
      0, whole, lambda n, sums: add(sums, cut(w_VD, n), cut(bias_V, n)), sums
    )
    if V % words:
      sums = add(sums, w_VD[whole * words :], bias_V[whole * words :])
    return sums[0] + jnp.log(sums[1])

  def put(log_z_T, start, size: int):
    piece_Q = of_rows(jax.lax.dynamic_slice_in_dim(h_TD, start, size))
    return jax.lax.dynamic_update_slice_in_dim(log_z_T, piece_Q, start, 0)

  log_z_T = jax.lax.fori_loop(
    0, count // most, lambda n, out: put(out, n * most, most), jnp.zeros(h_TD.shape[0])
  )
  start, rest = count // most * most, count % most
  sizes = [min(size, most) for size in range(tile.step, most + tile.step, tile.step)]
  branches = [lambda out: out, *(lambda out, size=size: put(out, start, size) for size in sizes)]
  return jax.lax.switch(-(-rest // tile.step), branches, log_z_T)[:T]
