"""Log softmax of h w^T by stretches of time; the logits of one stretch exist at a time, also
backward.

Axes: B batch, T time, Q positions of a stretch, D d_model, V vocabulary; n stretches, k of them
kept.

With a = h w^T + bias, s = softcap(a), p = exp(s - log_z), y the one-hot target, g and z the
gradients of log_prob
and log_z:  ds = g y + (z - g) p;  da = ds (1 - (s / softcap)^2);  dh = da w, dw = da^T h, dbias =
sum da.

The cut is along time, never along the batch: a batch sharded over devices stays where it is.

The backward pass needs p. The last k stretches keep q = p - y, in the arguments' dtype (da is
rounded to that anyway); the others compute their logits again. q_y = expm1(log_prob), not from a
rounded p: a sure prediction would have no gradient. With q, ds = (z - g) q + z y. With a softcap
nothing is kept: its slope needs s.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.linear_cross_entropy.blocks import num_kept
from jaxlm.kernels.linear_cross_entropy.reference import is_target, logits
from jaxlm.kernels.linear_cross_entropy.reference import linear_cross_entropy as dense
from jaxlm.kernels.platform import target_platform


def _cut(x_BT, n, chunk: int):
  return None if x_BT is None else jax.lax.dynamic_slice_in_dim(x_BT, n * chunk, chunk, axis=1)


def _pad(x_BT, chunk: int, value=0):
  padding = -x_BT.shape[1] % chunk
  widths = ((0, 0), (0, padding)) + ((0, 0),) * (x_BT.ndim - 2)
  return jnp.pad(x_BT, widths, constant_values=value) if padding else x_BT


def _join(x_nBQ, T: int):
  """Stretches stacked by scan on the leading axis, to (B, T, ...)."""
  x_BnQ = jnp.moveaxis(x_nBQ, 0, 1)
  return x_BnQ.reshape(x_BnQ.shape[0], -1, *x_BnQ.shape[3:])[:, :T]


def _stretches(x_BT, k: int, chunk: int):
  """The last k stretches, side by side: (k, B, Q, ...)."""
  x_BkQ = x_BT[:, -k * chunk :].reshape(x_BT.shape[0], k, chunk, *x_BT.shape[2:])
  return jnp.moveaxis(x_BkQ, 1, 0)


def kept(h_BTD, w_VD, softcap, chunk: int, keep_bytes: int) -> int:
  """k, for the arrays of one device."""
  (B, T, _), V = h_BTD.shape, w_VD.shape[0]
  return (
    0
    if softcap is not None
    else num_kept(B, chunk, V, w_VD.dtype.itemsize, -(-T // chunk), keep_bytes)
  )


def forward(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk: int, keep: int = 0):
  """((log_prob_BT or None, log_z_BT), q_kBQV of the last `keep` stretches)."""
  T = h_BTD.shape[1]
  h_padded = _pad(h_BTD, chunk)
  targets_padded = None if targets_BT is None else _pad(targets_BT, chunk)
  num = h_padded.shape[1] // chunk

  def plain(_, n):
    return None, dense(
      _cut(h_padded, n, chunk), w_VD, bias_V, _cut(targets_padded, n, chunk), softcap=softcap
    )

  def keeping(_, n):
    h_BQD = _cut(h_padded, n, chunk)
    outs = dense(h_BQD, w_VD, bias_V, _cut(targets_padded, n, chunk), softcap=softcap)
    q_BQV = jnp.exp(
      logits(h_BQD, w_VD, bias_V, softcap) - outs[1][..., None]
    )  # the compiler sees one product
    if targets_padded is not None:
      q_BQV = jnp.where(
        is_target(_cut(targets_padded, n, chunk), q_BQV.shape[-1]),
        jnp.expm1(outs[0])[..., None],
        q_BQV,
      )
    return None, (outs, q_BQV.astype(w_VD.dtype))

  _, outs = jax.lax.scan(plain, None, jnp.arange(num - keep))
  if not keep:
    return jax.tree.map(lambda x: _join(x, T), outs), None
  _, (last, q_kBQV) = jax.lax.scan(keeping, None, jnp.arange(num - keep, num))
  return jax.tree.map(lambda a, b: _join(jnp.concatenate([a, b]), T), outs, last), q_kBQV


def backward(h_BTD, w_VD, bias_V, targets_BT, outs, q_kBQV, gradients, softcap, chunk: int):
  """(dh in h's dtype, dw float32, dbias float32 or None). outs, q_kBQV: of `forward`."""
  g_BT, z_BT = gradients
  T, V = h_BTD.shape[1], w_VD.shape[0]
  of_p_BT = z_BT if g_BT is None else z_BT - g_BT  # 0 at padded positions, hence no gradient there
  h, targets, g, z, of_p = (
    None if x is None else _pad(x, chunk) for x in (h_BTD, targets_BT, g_BT, z_BT, of_p_BT)
  )
  log_z = _pad(outs[1], chunk, jnp.inf)  # else a large bias there gives inf x 0
  num, keep = h.shape[1] // chunk, 0 if q_kBQV is None else q_kBQV.shape[0]

  def add(sums, h_BQD, da_BQV):
    dw_VD, dbias_V = sums
    da = da_BQV.astype(w_VD.dtype)
    dh_BQD = jnp.einsum("bqv,vd->bqd", da, w_VD, preferred_element_type=jnp.float32).astype(h.dtype)
    dw_VD = dw_VD + jnp.einsum("bqv,bqd->vd", da, h_BQD, preferred_element_type=jnp.float32)
    dbias_V = None if dbias_V is None else dbias_V + jnp.sum(da_BQV, (0, 1))
    return (dw_VD, dbias_V), dh_BQD

  def again(sums, n):
    h_BQD = _cut(h, n, chunk)
    s_BQV = logits(h_BQD, w_VD, bias_V, softcap)
    da_BQV = _cut(of_p, n, chunk)[..., None] * jnp.exp(s_BQV - _cut(log_z, n, chunk)[..., None])
    if targets is not None:
      da_BQV += jnp.where(is_target(_cut(targets, n, chunk), V), _cut(g, n, chunk)[..., None], 0.0)
    if softcap is not None:
      da_BQV *= 1 - jnp.square(s_BQV / softcap)
    return add(sums, h_BQD, da_BQV)

  def from_kept(sums, inputs):
    h_BQD, targets_BQ, z_BQ, of_p_BQ, q_BQV = inputs
    da_BQV = of_p_BQ[..., None] * q_BQV
    if targets_BQ is not None:
      da_BQV += jnp.where(is_target(targets_BQ, V), z_BQ[..., None], 0.0)
    return add(sums, h_BQD, da_BQV)

  sums = (jnp.zeros(w_VD.shape, jnp.float32), None if bias_V is None else jnp.zeros(V, jnp.float32))
  sums, dh = jax.lax.scan(again, sums, jnp.arange(num - keep))
  if keep:
    inputs = [None if x is None else _stretches(x, keep, chunk) for x in (h, targets, z, of_p)] + [
      q_kBQV
    ]
    # One product per stretch where it has to fit a cache; else one for all, which reads and writes
    # dw once.
    groups = keep if target_platform() == "cpu" else 1

    def fold(x_kBQ):
      return x_kBQ.reshape(groups, 1, -1, *x_kBQ.shape[3:])

    sums, last = jax.lax.scan(from_kept, sums, jax.tree.map(fold, inputs))
    dh = jnp.concatenate([dh, last.reshape(keep, *dh.shape[1:])])
  return _join(dh, T), *sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _op(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk: int, keep_bytes: int):
  return forward(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk)[0]


def _forward(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk, keep_bytes):
  keep = kept(h_BTD, w_VD, softcap, chunk, keep_bytes)
  out, q_kBQV = forward(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk, keep)
  return out, (h_BTD, w_VD, bias_V, targets_BT, out, q_kBQV)


def _backward(softcap, chunk, keep_bytes, residuals, gradients):
  dh, dw, dbias = backward(*residuals, gradients, softcap, chunk)
  w_VD, bias_V = residuals[1:3]
  return dh, dw.astype(w_VD.dtype), None if bias_V is None else dbias.astype(bias_V.dtype), None


_op.defvjp(_forward, _backward)


def linear_cross_entropy(h_BTD, w_VD, bias_V, targets_BT, *, softcap, chunk: int, keep_bytes: int):
  """As reference.linear_cross_entropy, on one device or as the partitioner likes."""
  return _op(h_BTD, w_VD, bias_V, targets_BT, softcap, min(chunk, h_BTD.shape[1]), keep_bytes)
