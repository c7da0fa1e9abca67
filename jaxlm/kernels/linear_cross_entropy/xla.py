"""Log softmax of h w^T by stretches of time; the logits of one stretch exist at a time, also backward.

Axes: B batch, T time, Q positions of a stretch, D d_model, V vocabulary.

With a = h w^T + bias, s = softcap(a), p = exp(s - log_z), y the one-hot target, g and z the gradients of log_prob
and log_z:  ds = g y + (z - g) p;  da = ds (1 - (s / softcap)^2);  dh = da w, dw = da^T h, dbias = sum da.

The cut is along time, never along the batch: a batch sharded over devices stays where it is.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.linear_cross_entropy.reference import is_target, logits
from jaxlm.kernels.linear_cross_entropy.reference import linear_cross_entropy as dense


def _cut(x_BT, n, chunk: int):
  return None if x_BT is None else jax.lax.dynamic_slice_in_dim(x_BT, n * chunk, chunk, axis=1)


def _pad(x_BT, chunk: int):
  padding = -x_BT.shape[1] % chunk
  return jnp.pad(x_BT, ((0, 0), (0, padding)) + ((0, 0),) * (x_BT.ndim - 2)) if padding else x_BT


def _join(x_nBQ, T: int):
  """Stretches stacked by scan on the leading axis, to (B, T, ...)."""
  x_BnQ = jnp.moveaxis(x_nBQ, 0, 1)
  return x_BnQ.reshape(x_BnQ.shape[0], -1, *x_BnQ.shape[3:])[:, :T]


def forward(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk: int):
  """(log_prob_BT, log_z_BT), or (None, log_z_BT) without targets."""
  T = h_BTD.shape[1]
  h_padded = _pad(h_BTD, chunk)
  targets_padded = None if targets_BT is None else _pad(targets_BT, chunk)

  def step(_, n):
    return None, dense(_cut(h_padded, n, chunk), w_VD, bias_V, _cut(targets_padded, n, chunk), softcap=softcap)

  _, outs = jax.lax.scan(step, None, jnp.arange(h_padded.shape[1] // chunk))
  return jax.tree.map(lambda x: _join(x, T), outs)


def backward(h_BTD, w_VD, bias_V, targets_BT, log_z_BT, gradients, softcap, chunk: int):
  """(dh in h's dtype, dw float32, dbias float32 or None)."""
  g_BT, z_BT = gradients
  T, V = h_BTD.shape[1], w_VD.shape[0]
  of_p_BT = z_BT if g_BT is None else z_BT - g_BT          # 0 at padded positions, hence no gradient there
  h, targets, log_z, g, of_p = (None if x is None else _pad(x, chunk)
                                for x in (h_BTD, targets_BT, log_z_BT, g_BT, of_p_BT))

  def step(sums, n):
    dw_VD, dbias_V = sums
    h_BQD = _cut(h, n, chunk)
    s_BQV = logits(h_BQD, w_VD, bias_V, softcap)
    da_BQV = _cut(of_p, n, chunk)[..., None] * jnp.exp(s_BQV - _cut(log_z, n, chunk)[..., None])
    if targets is not None:
      da_BQV += jnp.where(is_target(_cut(targets, n, chunk), V), _cut(g, n, chunk)[..., None], 0.0)
    if softcap is not None:
      da_BQV *= 1 - jnp.square(s_BQV / softcap)
    da = da_BQV.astype(w_VD.dtype)
    dh_BQD = jnp.einsum("bqv,vd->bqd", da, w_VD, preferred_element_type=jnp.float32).astype(h.dtype)
    dw_VD = dw_VD + jnp.einsum("bqv,bqd->vd", da, h_BQD, preferred_element_type=jnp.float32)
    dbias_V = None if dbias_V is None else dbias_V + jnp.sum(da_BQV, (0, 1))
    return (dw_VD, dbias_V), dh_BQD

  zeros = (jnp.zeros(w_VD.shape, jnp.float32), None if bias_V is None else jnp.zeros(V, jnp.float32))
  (dw_VD, dbias_V), dh = jax.lax.scan(step, zeros, jnp.arange(h.shape[1] // chunk))
  return _join(dh, T), dw_VD, dbias_V


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _op(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk: int):
  return forward(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk)


def _forward(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk):
  out = forward(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk)
  return out, (h_BTD, w_VD, bias_V, targets_BT, out[1])


def _backward(softcap, chunk, residuals, gradients):
  h_BTD, w_VD, bias_V, targets_BT, log_z_BT = residuals
  dh, dw, dbias = backward(h_BTD, w_VD, bias_V, targets_BT, log_z_BT, gradients, softcap, chunk)
  return dh, dw.astype(w_VD.dtype), None if bias_V is None else dbias.astype(bias_V.dtype), None


_op.defvjp(_forward, _backward)


def linear_cross_entropy(h_BTD, w_VD, bias_V, targets_BT, *, softcap, chunk: int):
  """As reference.linear_cross_entropy, on one device or as the partitioner likes."""
  return _op(h_BTD, w_VD, bias_V, targets_BT, softcap, min(chunk, h_BTD.shape[1]))
