"""SSD (Dao & Gu, arXiv 2405.21060, section 6): matrix products inside chunks, a carried state
between them.

Axes: as in api.py, with G heads of one group of K, and F their channels (G, H) side by side:
products with the state are then plain ones of (Q, E) and (E, F). Q and R are two positions of one
chunk (query and source).

Within a chunk, with a(R, Q] the product of a over R < t <= Q and no reset there, u = dt x, and 0
the chunk's start:

  y_Q = sum_{R <= Q} a(R, Q] (C_Q . B_R) u_R + a(0, Q] C_Q S_in
  S_out = a(0, last] S_in + sum_R a(R, last] u_R (x) B_R

Each product is the exponential of a sum of its own terms (`kernels.interval_sums`), never of a
difference of running sums.
Chunks run in a scan: only one chunk's (N, Q, R) decays exist at a time, in either direction. The
backward recomputes them from the inputs, the saved state at each chunk's start and what was read of
it. d loss / d log a_t is the sum over pairs R < t <= Q of the pair's decay times its gradient,
where R or Q may lie outside the chunk and stand in the states; again only of terms that span t. So
a token that forgets all gets the zero that it should, and what stands before a document in a row
changes not one bit of it.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.interval_sums import (
  FLOOR,
  exclusive_prefix_sums,
  padded,
  pair_sums,
  prefix_sums,
  spanning_sums,
  suffix_sums,
)
from jaxlm.kernels.sums import sum_of_products

einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _chunks(v, chunk):
  """(B, T, ...) -> (T / chunk, B, chunk, ...)."""
  return jnp.moveaxis(v.reshape(v.shape[0], -1, chunk, *v.shape[2:]), 1, 0)


def _join(v):
  """The inverse of `_chunks`."""
  v = jnp.moveaxis(v, 0, 1)
  return v.reshape(v.shape[0], -1, *v.shape[3:])


def _runs(chunk, reset_BQ):
  """same: R <= Q of one document (B or 1, Q, R); first, last: of the document that is there at the
  chunk's start, end.

  first and last are None without resets: then all are.
  """
  same_BQR = jnp.tri(chunk, dtype=bool)[None]
  if reset_BQ is None:
    return same_BQR, None, None
  run_BQ = jnp.cumsum(reset_BQ, axis=1)
  return same_BQR & (run_BQ[:, :, None] == run_BQ[:, None]), run_BQ == 0, run_BQ == run_BQ[:, -1:]


def _where(mask_BQ, v_BKGQ):
  return v_BKGQ if mask_BQ is None else jnp.where(mask_BQ[:, None, None], v_BKGQ, 0)


def _last(v_BKGQ):
  return jnp.moveaxis(v_BKGQ, 3, 1)


def _decays(log_a_BQKG, runs, transposed=False):
  """Decays of one chunk: pair (B, K, G, Q, R), transposed (B, K, G, R, Q), from the start and to
  the end (B, Q, K, G).
  """
  same_BQR, first_BQ, last_BQ = runs
  log_a_BKGQ = jnp.maximum(jnp.moveaxis(log_a_BQKG, 1, 3), FLOOR)
  # Documents' own terms only: an interval within a document, or from the chunk's start, or to its
  # end.
  same = (jnp.swapaxes(same_BQR, 1, 2) if transposed else same_BQR)[:, None, None]
  pair = jnp.where(same, jnp.exp(pair_sums(log_a_BKGQ, transposed=transposed)), 0)
  start_BKGQ = _where(first_BQ, jnp.exp(prefix_sums(log_a_BKGQ)))
  end_BKGQ = _where(last_BQ, jnp.exp(suffix_sums(log_a_BKGQ, inclusive=False)))
  return pair, _last(start_BKGQ), _last(end_BKGQ)


def _heads(v_F, num_heads):
  """(..., F) -> (..., G, H)."""
  return v_F.reshape(*v_F.shape[:-1], num_heads, -1)


def _scale(v_F, factor_G):
  """v times a number per head: (..., F) and (..., G)."""
  return (_heads(v_F, factor_G.shape[-1]) * factor_G[..., None]).reshape(v_F.shape)


def _apart(v_BQKF, num_heads):
  """(B, Q, K, F) -> (B, K, G, Q, H)."""
  return jnp.moveaxis(_heads(v_BQKF, num_heads), 1, 3)


def _together(v_BKGQH):
  """The inverse of `_apart`."""
  v_BQKGH = jnp.moveaxis(v_BKGQH, 3, 1)
  return v_BQKGH.reshape(*v_BQKGH.shape[:3], -1)


def _chunk_forward(s_BKEF, inputs):
  x_BQKF, dt_BQKG, log_a_BQKG, b_BQKE, c_BQKE, reset_BQ = inputs
  dtype, G = x_BQKF.dtype, log_a_BQKG.shape[-1]
  u_BQKF = _scale(x_BQKF, dt_BQKG).astype(dtype)
  pair_BKGQR, start_BQKG, end_BQKG = _decays(log_a_BQKG, _runs(log_a_BQKG.shape[1], reset_BQ))
  score_BKQR = einsum("bqke,brke->bkqr", c_BQKE, b_BQKE)
  m_BKGQR = (pair_BKGQR * score_BKQR[:, :, None]).astype(dtype)
  y_BQKF = _together(einsum("bkgqr,bkgrh->bkgqh", m_BKGQR, _apart(u_BQKF, G)))
  read_BQKF = einsum(
    "bqke,bkef->bqkf", c_BQKE.astype(jnp.float32), s_BKEF
  )  # of the old state, not decayed
  y_BQKF += _scale(read_BQKF, start_BQKG)
  added_BKEF = einsum("brke,brkf->bkef", b_BQKE, _scale(u_BQKF, end_BQKG).astype(dtype))
  return _scale(s_BKEF, start_BQKG[:, -1, :, None]) + added_BKEF, (y_BQKF, s_BKEF, read_BQKF)


def _chunk_backward(ds_BKEF, inputs):
  """ds: gradient of the state after the chunk. Returns that before it."""
  x_BQKF, dt_BQKG, log_a_BQKG, b_BQKE, c_BQKE, reset_BQ, s_BKEF, read_BQKF, dy_BQKF = inputs
  dtype, G = x_BQKF.dtype, log_a_BQKG.shape[-1]
  u_BQKF = _scale(x_BQKF, dt_BQKG).astype(dtype)
  # Pairs are (R, Q) here: then the heads' products with them are plain ones, and only one of a
  # whole group is not.
  pair_BKGRQ, start_BQKG, end_BQKG = _decays(
    log_a_BQKG, _runs(log_a_BQKG.shape[1], reset_BQ), transposed=True
  )
  u_BKGRH, dy_BKGQH = _apart(u_BQKF, G), _apart(dy_BQKF.astype(dtype), G)
  in_BQKF, out_BQKF = _scale(dy_BQKF, start_BQKG), _scale(u_BQKF.astype(jnp.float32), end_BQKG)
  score_BKRQ = einsum("brke,bqke->bkrq", b_BQKE, c_BQKE)
  m_BKGRQ = (pair_BKGRQ * score_BKRQ[:, :, None]).astype(dtype)
  # Heads of a group share B and C, so the scores' gradient is summed over heads before the
  # products.
  dm_BKGRQ = einsum("bkgrh,bkgqh->bkgrq", u_BKGRH, dy_BKGQH)
  dscore_BKRQ = sum_of_products(pair_BKGRQ, dm_BKGRQ, axis=2).astype(dtype)
  taught_BRKF = einsum("brke,bkef->brkf", b_BQKE.astype(jnp.float32), ds_BKEF)
  dc_BQKE = einsum("bkrq,brke->bqke", dscore_BKRQ, b_BQKE) + einsum(
    "bqkf,bkef->bqke", in_BQKF, s_BKEF
  )
  db_BQKE = einsum("bkrq,bqke->brke", dscore_BKRQ, c_BQKE) + einsum(
    "brkf,bkef->brke", out_BQKF, ds_BKEF
  )
  du_BQKF = _together(einsum("bkgrq,bkgqh->bkgrh", m_BKGRQ, dy_BKGQH)) + _scale(
    taught_BRKF, end_BQKG
  )

  def per_head(a_BQKF, b_BQKF):
    return sum_of_products(_heads(a_BQKF, G), _heads(b_BQKF.astype(jnp.float32), G), -1)

  ddt_BQKG = per_head(du_BQKF, x_BQKF)
  # Of log a_t: every pair that spans t. Both in the chunk; the old state and a later Q; an earlier
  # R and the new state; both states.
  both_BKGRQ = dm_BKGRQ * m_BKGRQ.astype(jnp.float32)
  old_BKGQ, new_BKGR = (
    jnp.moveaxis(per_head(a, b), 1, 3) for a, b in ((in_BQKF, read_BQKF), (out_BQKF, taught_BRKF))
  )
  through_BKG = start_BQKG[:, -1] * jnp.sum(_heads(sum_of_products(ds_BKEF, s_BKEF, axis=2), G), -1)
  dlog_a_BKGQ = (
    spanning_sums(both_BKGRQ, transposed=True)
    + suffix_sums(old_BKGQ, inclusive=True)
    + exclusive_prefix_sums(new_BKGR)
    + through_BKG[..., None]
  )
  ds_in_BKEF = _scale(ds_BKEF, start_BQKG[:, -1, :, None]) + einsum(
    "bqke,bqkf->bkef", c_BQKE.astype(jnp.float32), in_BQKF
  )
  return ds_in_BKEF, (_scale(du_BQKF, dt_BQKG), ddt_BQKG, _last(dlog_a_BKGQ), db_BQKE, dc_BQKE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def scan(x_BTKF, dt_BTKG, log_a_BTKG, b_BTKE, c_BTKE, state_BKEF, reset_BT, chunk):
  """(y_BTKF, state_BKEF), float32. T is a multiple of chunk; x, b, c share the dtype of the
  products.
  """
  return _scan_fwd(x_BTKF, dt_BTKG, log_a_BTKG, b_BTKE, c_BTKE, state_BKEF, reset_BT, chunk)[0]


def _scan_fwd(x_BTKF, dt_BTKG, log_a_BTKG, b_BTKE, c_BTKE, state_BKEF, reset_BT, chunk):
  inputs = jax.tree.map(
    lambda v: _chunks(v, chunk), (x_BTKF, dt_BTKG, log_a_BTKG, b_BTKE, c_BTKE, reset_BT)
  )
  final_BKEF, (y, *saved) = jax.lax.scan(_chunk_forward, state_BKEF, inputs)
  return (_join(y), final_BKEF), (inputs, saved)


def _scan_bwd(chunk, saved, cotangents):
  inputs, saved = saved
  dy_BTKF, dfinal_BKEF = cotangents
  ds_BKEF, grads = jax.lax.scan(
    _chunk_backward, dfinal_BKEF, (*inputs, *saved, _chunks(dy_BTKF, chunk)), reverse=True
  )
  return *(_join(g.astype(v.dtype)) for g, v in zip(grads, inputs)), ds_BKEF, None


scan.defvjp(_scan_fwd, _scan_bwd)


def ssd(x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, state_BNHE, reset_BT, *, chunk):
  (B, T, N, H), K = x_BTNH.shape, b_BTKE.shape[2]
  chunk = padded(min(chunk, T))

  # Padding tokens have dt = 0 and log a = 0: they add nothing and forget nothing.
  def pad(v):
    return jnp.pad(v, ((0, 0), (0, -T % chunk)) + ((0, 0),) * (v.ndim - 2))

  def grouped(v):
    return pad(v.reshape(B, T, K, -1))

  state_BKEF = jnp.moveaxis(state_BNHE.reshape(B, K, N // K * H, -1), 3, 2)
  y_BTKF, state_BKEF = scan(
    grouped(x_BTNH),
    grouped(dt_BTN),
    grouped(log_a_BTN),
    pad(b_BTKE),
    pad(c_BTKE),
    state_BKEF,
    None if reset_BT is None else pad(reset_BT),
    chunk,
  )
  return y_BTKF.reshape(B, -1, N, H)[:, :T], jnp.moveaxis(state_BKEF, 2, 3).reshape(
    state_BNHE.shape
  )


def backward_from_starts(
  x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, starts_BCNEH, dy_BTNH, d_final_BNHE, chunk
):
  """Gradients of x, log a, dt, b, c and the initial state, from the states at chunks' starts. Resets
  are log decays of FLOOR. T is a multiple of chunk.

  What was read of a state is computed again for one chunk at a time.
  """
  (B, T, N, H), (K, E) = x_BTNH.shape, b_BTKE.shape[2:]

  def grouped(v):
    return v.reshape(B, T, K, -1)

  def state(v_XNEH):
    """(..., N, E, H) -> (..., K, E, F)."""
    v = v_XNEH.reshape(*v_XNEH.shape[:-3], K, N // K, E, H)
    return jnp.moveaxis(v, -3, -2).reshape(*v_XNEH.shape[:-3], K, E, -1)

  tokens = grouped(x_BTNH), grouped(dt_BTN), grouped(log_a_BTN), b_BTKE, c_BTKE
  inputs = [_chunks(v, chunk) for v in tokens]

  def step(ds_BKEF, inputs):
    *inputs, s_BKEF, dy_BQKF = inputs
    read_BQKF = einsum("bqke,bkef->bqkf", inputs[4].astype(jnp.float32), s_BKEF)
    return _chunk_backward(ds_BKEF, (*inputs, None, s_BKEF, read_BQKF, dy_BQKF))

  starts, dy = jnp.moveaxis(state(starts_BCNEH), 1, 0), _chunks(grouped(dy_BTNH), chunk)
  ds_BKEF, grads = jax.lax.scan(
    step, state(d_final_BNHE.mT), (*inputs, starts, dy.astype(jnp.float32)), reverse=True
  )
  dx, ddt, dlog_a, db, dc = (_join(g.astype(v.dtype)) for g, v in zip(grads, inputs))
  d_state_BNHE = jnp.moveaxis(ds_BKEF.reshape(B, K, E, N // K, H), 2, 4).reshape(B, N, H, E)
  return (
    dx.reshape(x_BTNH.shape),
    dlog_a.reshape(log_a_BTN.shape),
    ddt.reshape(dt_BTN.shape),
    db,
    dc,
    d_state_BNHE,
  )
