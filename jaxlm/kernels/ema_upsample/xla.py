"""h_t = d_t h_{t-1} + w_t in matrix products over blocks, and its transpose.

Axes as in api.py; Q and R are two positions of one block (query and source).

The forward runs along the chunks and gathers. The backward runs along the *positions*: with d = 1
where no chunk starts, H_t = g_t + d_{t+1} H_{t+1} sums the readers of a chunk and recurs over
chunks at once, and the gradient of chunk j is H at its position. No segment sum, which accelerators
do one row at a time.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.compact import gather, scatter
from jaxlm.kernels.interval_sums import padded, pair_sums, prefix_sums

BLOCK = 64
# The recurrence is specified in float32: bfloat16 passes would cost 4e-3 on unit-scale data.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _blocks(v, fill):
  """(B, T, ...) -> (T / Q, B, Q, ...), padded with `fill`."""
  size = padded(min(BLOCK, v.shape[1]))
  v = jnp.pad(v, ((0, 0), (0, -v.shape[1] % size)) + ((0, 0),) * (v.ndim - 2), constant_values=fill)
  return jnp.moveaxis(v.reshape(v.shape[0], -1, size, *v.shape[2:]), 1, 0)


def _join(v, length):
  v = jnp.moveaxis(v, 0, 1)
  return v.reshape(v.shape[0], -1, *v.shape[3:])[:, :length]


def _products(decay_BQ):
  """Products of decays over R+1..Q (B, Q, R), 0..Q (B, Q), R+1..end (B, R).

  Zeros are breaks, kept out of logs.
  """
  run_BQ = jnp.cumsum(decay_BQ <= 0, axis=1)
  log_BQ = jnp.log(jnp.where(decay_BQ > 0, decay_BQ, 1))
  same_BQR = (run_BQ[:, :, None] == run_BQ[:, None]) & jnp.tri(decay_BQ.shape[1], dtype=bool)[None]
  # Each interval from its own terms: running sums of 64 logarithms reach -1,000, and their
  # differences are wrong by 5e-5.
  pair_BQR = jnp.where(same_BQR, jnp.exp(pair_sums(log_BQ)), 0)
  return pair_BQR, jnp.exp(prefix_sums(log_BQ)) * (run_BQ == 0), pair_BQR[:, -1]


def recur(decay_BT, w_BTD, initial_BD):
  """h_t = d_t h_{t-1} + w_t. Returns (h_BTD, h at the end)."""

  def block(h_BD, inputs):
    decay_BQ, w_BQD = inputs
    pair_BQR, start_BQ, _ = _products(decay_BQ)
    h_BQD = einsum("bqr,brd->bqd", pair_BQR, w_BQD) + start_BQ[..., None] * h_BD[:, None]
    return h_BQD[:, -1], h_BQD

  last_BD, h = jax.lax.scan(block, initial_BD, (_blocks(decay_BT, 1), _blocks(w_BTD, 0)))
  return _join(h, w_BTD.shape[1]), last_BD


def recur_transpose(decay_BT, g_BTD, last_BD):
  """H_t = g_t + d_{t+1} H_{t+1}, H_T = last. Returns (H_BTD, d_0 H_0)."""

  def block(c_BD, inputs):
    decay_BQ, g_BQD = inputs
    pair_BQR, start_BQ, end_BR = _products(decay_BQ)
    h_BRD = einsum("bqr,bqd->brd", pair_BQR, g_BQD) + end_BR[..., None] * c_BD[:, None]
    return decay_BQ[:, :1] * h_BRD[:, 0], h_BRD

  first_BD, h = jax.lax.scan(
    block, last_BD, (_blocks(decay_BT, 1), _blocks(g_BTD, 0)), reverse=True
  )
  return _join(h, g_BTD.shape[1]), first_BD


@jax.custom_vjp
def ema_upsample(x_BCD, p_BC, decay_BC, initial_BD, compaction):
  return _forward(x_BCD, p_BC, decay_BC, initial_BD, compaction)[0]


def _forward(x_BCD, p_BC, decay_BC, initial_BD, compaction):
  z_BCD, last_BD = recur(decay_BC, p_BC[..., None] * x_BCD.astype(jnp.float32), initial_BD)
  before_BCD = jnp.concatenate([initial_BD[:, None], z_BCD], axis=1)
  read = jax.vmap(lambda z, i: z.at[i].get(mode="promise_in_bounds"))
  y_BTD = read(before_BCD, compaction.rank_BT + 1)
  return (y_BTD, last_BD), (x_BCD, p_BC, decay_BC, before_BCD[:, :-1], compaction)


def _backward(saved, cotangents):
  x_BCD, p_BC, decay_BC, before_BCD, compaction = saved
  dy_BTD, dlast_BD = cotangents
  decay_BT = jnp.where(compaction.kept_BT, scatter(decay_BC, compaction), 1)
  # The slots after the last chunk have decay 1, so the end of the positions is the end of the
  # chunks.
  h_BTD, dinitial_BD = recur_transpose(decay_BT, dy_BTD, dlast_BD)
  h_BCD = gather(h_BTD, compaction)
  dx_BCD = (p_BC[..., None] * h_BCD).astype(x_BCD.dtype)
  return (dx_BCD, jnp.sum(h_BCD * x_BCD, -1), jnp.sum(h_BCD * before_BCD, -1), dinitial_BD, None)


ema_upsample.defvjp(_forward, _backward)
