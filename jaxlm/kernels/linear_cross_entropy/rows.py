"""Log softmax of the first rows of one long list; what lies behind them is neither computed nor
differentiated.

Axes: T rows, Q rows of a stretch, D d_model, V vocabulary. Gradients as in xla.py. The number of
rows that count is data: loops of unknown length run over the stretches that hold them, forward and
backward, so that time follows the number.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.linear_cross_entropy import reference, tiles


def _cut(x_T, n, chunk: int):
  return None if x_T is None else jax.lax.dynamic_slice_in_dim(x_T, n * chunk, chunk)


def _pad(x_T, chunk: int):
  return (
    None
    if x_T is None
    else jnp.pad(x_T, ((0, -x_T.shape[0] % chunk),) + ((0, 0),) * (x_T.ndim - 1))
  )


def _put(x_T, piece_Q, n, chunk: int):
  return jax.lax.dynamic_update_slice_in_dim(x_T, piece_Q, n * chunk, 0)


def _stretches(count, chunk: int):
  return -(-count // chunk)


def _inside(x_T, count):
  return jnp.where(jnp.arange(x_T.shape[0]) < count, x_T, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _op(h_TD, w_VD, bias_V, targets_T, count, softcap, chunk: int, tile: tiles.Tile | None):
  return _forward(h_TD, w_VD, bias_V, targets_T, count, softcap, chunk, tile)[0]


def _forward(h_TD, w_VD, bias_V, targets_T, count, softcap, chunk, tile):
  if targets_T is None and tile is not None:
    log_z_T = _inside(tiles.log_z(h_TD, w_VD, bias_V, count, softcap=softcap, tile=tile), count)
    return (None, log_z_T), (h_TD, w_VD, bias_V, None, count, log_z_T)
  T, h, targets = h_TD.shape[0], _pad(h_TD, chunk), _pad(targets_T, chunk)

  def body(n, out):
    piece = None if targets is None else _cut(targets, n, chunk)[None]
    found = reference.linear_cross_entropy(
      _cut(h, n, chunk)[None], w_VD, bias_V, piece, softcap=softcap
    )
    return jax.tree.map(lambda x_T, x_1Q: _put(x_T, x_1Q[0], n, chunk), out, found)

  zero = jnp.zeros(h.shape[0], jnp.float32)
  out = jax.lax.fori_loop(
    0, _stretches(count, chunk), body, (None if targets is None else zero, zero)
  )
  out = jax.tree.map(lambda x: _inside(x[:T], count), out)
  return out, (h_TD, w_VD, bias_V, targets_T, count, out[1])


def _backward(softcap, chunk, tile, residuals, gradients):
  h_TD, w_VD, bias_V, targets_T, count, log_z_T = residuals
  g_T, z_T = (None if g is None else _inside(g, count) for g in gradients)
  of_p_T = z_T if g_T is None else z_T - g_T
  h, targets, log_z, g, of_p = (_pad(x, chunk) for x in (h_TD, targets_T, log_z_T, g_T, of_p_T))
  V = w_VD.shape[0]

  def body(n, sums):
    dh_TD, dw_VD, dbias_V = sums
    h_QD, of_p_Q1 = _cut(h, n, chunk), _cut(of_p, n, chunk)[:, None]
    s_QV = reference.logits(h_QD[None], w_VD, bias_V, softcap)[0]
    # A row that does not count has no partition: exp of its logits may be anything.
    da_QV = jnp.where(of_p_Q1 != 0, of_p_Q1 * jnp.exp(s_QV - _cut(log_z, n, chunk)[:, None]), 0.0)
    if targets is not None:
      da_QV += jnp.where(
        reference.is_target(_cut(targets, n, chunk)[None], V)[0], _cut(g, n, chunk)[:, None], 0.0
      )
    if softcap is not None:
      da_QV *= 1 - jnp.square(s_QV / softcap)
    da = da_QV.astype(w_VD.dtype)
    dh_QD = jnp.einsum("qv,vd->qd", da, w_VD, preferred_element_type=jnp.float32).astype(h.dtype)
    dw_VD = dw_VD + jnp.einsum("qv,qd->vd", da, h_QD, preferred_element_type=jnp.float32)
    return (
      _put(dh_TD, dh_QD, n, chunk),
      dw_VD,
      None if dbias_V is None else dbias_V + jnp.sum(da_QV, 0),
    )

  zeros = (
    jnp.zeros_like(h),
    jnp.zeros(w_VD.shape, jnp.float32),
    None if bias_V is None else jnp.zeros(V, jnp.float32),
  )
  dh, dw, dbias = jax.lax.fori_loop(0, _stretches(count, chunk), body, zeros)
  return (
    dh[: h_TD.shape[0]],
    dw.astype(w_VD.dtype),
    None if bias_V is None else dbias.astype(bias_V.dtype),
    None,
    None,
  )


_op.defvjp(_forward, _backward)


def linear_cross_entropy(
  h_TD, w_VD, bias_V, targets_T, *, softcap, chunk: int, count, tile: tiles.Tile | None = None
):
  """(log_prob_T or None, log_z_T), 0 behind the first `count` (int32) rows. chunk: rows whose
  logits exist at a time.

  tile: without targets the forward pass goes by such tiles instead, so that no row's logits ever
  exist as a whole.
  """
  return _op(h_TD, w_VD, bias_V, targets_T, count, softcap, min(chunk, h_TD.shape[0]), tile)
