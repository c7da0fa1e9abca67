"""SSD (Dao & Gu, arXiv 2405.21060, section 6): matrix products inside chunks, a carried state between them.

Axes: as in api.py, with G heads of one group of K, and F their channels (G, H) side by side: products with the state
are then plain ones of (Q, E) and (E, F). Q and R are two positions of one chunk (query and source).

Within a chunk, with s = cumsum(log a) of a document and no reset between R and Q:

  y_Q = sum_{R <= Q} exp(s_Q - s_R) (C_Q . B_R) u_R + exp(s_Q) C_Q S_in,       u = dt x
  S_out = exp(s_last) S_in + sum_R exp(s_last - s_R) u_R (x) B_R

Chunks run in a scan: only one chunk's (N, Q, R) decays exist at a time, in either direction. The backward
recomputes them from the inputs and the saved state at each chunk's start. For the decays it uses

  d loss / d s_Q = dy_Q . y_Q - u_Q . du_Q,       d loss / d log a_t = sum_{Q >= t} of it,

the sum over t's own document, since s_Q enters y_Q with sign + and u_Q's coefficients with sign -. What lies beyond the
chunk adds <dS_out, S_out> once, so no difference of long sums is ever taken. s, too, is summed per document: what
stands before in a row changes not one bit of a document.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.sums import sum_of_products

einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _chunks(v, chunk):
  """(B, T, ...) -> (T / chunk, B, chunk, ...)."""
  return jnp.moveaxis(v.reshape(v.shape[0], -1, chunk, *v.shape[2:]), 1, 0)


def _join(v):
  """The inverse of `_chunks`."""
  v = jnp.moveaxis(v, 0, 1)
  return v.reshape(v.shape[0], -1, *v.shape[3:])


def _runs(log_a_BQKG, reset_BQ):
  """same: R <= Q of one document (B or 1, Q, R); first, last: of the document that is there at the chunk's start, end.

  first and last are None without resets: then all are.
  """
  same_BQR = jnp.tri(log_a_BQKG.shape[1], dtype=bool)[None]
  if reset_BQ is None:
    return same_BQR, None, None
  run_BQ = jnp.cumsum(reset_BQ, axis=1)
  return same_BQR & (run_BQ[:, :, None] == run_BQ[:, None]), run_BQ == 0, run_BQ == run_BQ[:, -1:]


def _sums(same_BQR, v_BQKG, reverse=False):
  """Of R <= Q, or of R >= Q, each within its own document. A product: a CPU's own form of a running sum is a loop."""
  same_BQR = jnp.broadcast_to(same_BQR.astype(jnp.float32), (v_BQKG.shape[0], *same_BQR.shape[1:]))
  return jnp.einsum("brq,brkg->bqkg" if reverse else "bqr,brkg->bqkg", same_BQR, v_BQKG, precision=jax.lax.Precision.HIGHEST)


def _where(mask_BQ, v_BQKG):
  return v_BQKG if mask_BQ is None else jnp.where(mask_BQ[..., None, None], v_BQKG, 0)


def _decays(log_a_BQKG, reset_BQ, runs, transposed=False):
  """Decays of one chunk: pair (B, K, G, Q, R), transposed (B, K, G, R, Q), from the start (B, Q, K, G), to the end."""
  same_BQR, first_BQ, last_BQ = runs
  # A reset token's own decay is never used.
  s_BQKG = _sums(same_BQR, log_a_BQKG if reset_BQ is None else _where(~reset_BQ, log_a_BQKG))
  s_BKGQ = jnp.moveaxis(s_BQKG, 1, 3)
  s_BKGQR, same_BKGQR = s_BKGQ[..., :, None] - s_BKGQ[..., None, :], same_BQR[:, None, None]
  turn = (lambda v: jnp.swapaxes(v, -1, -2)) if transposed else (lambda v: v)
  # Masked before exp: elsewhere the difference may be positive and could overflow.
  pair = jnp.exp(jnp.where(turn(same_BKGQR), turn(s_BKGQR), -jnp.inf))
  to_end_BQKG = s_BQKG[:, -1:] - s_BQKG
  return pair, _where(first_BQ, jnp.exp(s_BQKG)), _where(last_BQ, jnp.exp(_where(last_BQ, to_end_BQKG)))


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
  pair_BKGQR, start_BQKG, end_BQKG = _decays(log_a_BQKG, reset_BQ, _runs(log_a_BQKG, reset_BQ))
  score_BKQR = einsum("bqke,brke->bkqr", c_BQKE, b_BQKE)
  m_BKGQR = (pair_BKGQR * score_BKQR[:, :, None]).astype(dtype)
  y_BQKF = _together(einsum("bkgqr,bkgrh->bkgqh", m_BKGQR, _apart(u_BQKF, G)))
  y_BQKF += _scale(einsum("bqke,bkef->bqkf", c_BQKE.astype(jnp.float32), s_BKEF), start_BQKG)
  added_BKEF = einsum("brke,brkf->bkef", b_BQKE, _scale(u_BQKF, end_BQKG).astype(dtype))
  return _scale(s_BKEF, start_BQKG[:, -1, :, None]) + added_BKEF, (y_BQKF, s_BKEF)


def _chunk_backward(carry, inputs):
  """carry: (gradient of the state after the chunk, <gradient, state> after it). Returns those before it."""
  ds_BKEF, inner_BKG = carry
  x_BQKF, dt_BQKG, log_a_BQKG, b_BQKE, c_BQKE, reset_BQ, s_BKEF, y_BQKF, dy_BQKF = inputs
  dtype, G = x_BQKF.dtype, log_a_BQKG.shape[-1]
  u_BQKF = _scale(x_BQKF, dt_BQKG).astype(dtype)
  runs = same_BQR, _, last_BQ = _runs(log_a_BQKG, reset_BQ)
  # Pairs are (R, Q) here: then the heads' products with them are plain ones, and only one of a whole group is not.
  pair_BKGRQ, start_BQKG, end_BQKG = _decays(log_a_BQKG, reset_BQ, runs, transposed=True)
  u_BKGRH, dy_BKGQH = _apart(u_BQKF, G), _apart(dy_BQKF.astype(dtype), G)
  in_BQKF, out_BQKF = _scale(dy_BQKF, start_BQKG), _scale(u_BQKF.astype(jnp.float32), end_BQKG)
  score_BKRQ = einsum("brke,bqke->bkrq", b_BQKE, c_BQKE)
  m_BKGRQ = (pair_BKGRQ * score_BKRQ[:, :, None]).astype(dtype)
  # Heads of a group share B and C, so the scores' gradient is summed over heads before the products.
  dm_BKGRQ = einsum("bkgrh,bkgqh->bkgrq", u_BKGRH, dy_BKGQH)
  dscore_BKRQ = sum_of_products(pair_BKGRQ, dm_BKGRQ, axis=2).astype(dtype)
  dc_BQKE = einsum("bkrq,brke->bqke", dscore_BKRQ, b_BQKE) + einsum("bqkf,bkef->bqke", in_BQKF, s_BKEF)
  db_BQKE = einsum("bkrq,bqke->brke", dscore_BKRQ, c_BQKE) + einsum("brkf,bkef->brke", out_BQKF, ds_BKEF)
  du_BQKF = _together(einsum("bkgrq,bkgqh->bkgrh", m_BKGRQ, dy_BKGQH))
  du_BQKF += _scale(einsum("brke,bkef->brkf", b_BQKE.astype(jnp.float32), ds_BKEF), end_BQKG)
  per_head = lambda a_BQKF, b_BQKF: sum_of_products(_heads(a_BQKF, G), _heads(b_BQKF.astype(jnp.float32), G), -1)
  ddt_BQKG = per_head(du_BQKF, x_BQKF)
  # Not dt * ddt, which is the same only before u is rounded: terms that must cancel would leave their rounding.
  each_BQKG = per_head(dy_BQKF, y_BQKF) - per_head(du_BQKF, u_BQKF)
  beyond_BQKG = _where(last_BQ, jnp.broadcast_to(inner_BKG[:, None], each_BQKG.shape))
  dlog_a_BQKG = _sums(same_BQR, each_BQKG, reverse=True) + beyond_BQKG
  if reset_BQ is not None:
    dlog_a_BQKG = _where(~reset_BQ, dlog_a_BQKG)
  ds_in_BKEF = (_scale(ds_BKEF, start_BQKG[:, -1, :, None])
                + einsum("bqke,bqkf->bkef", c_BQKE.astype(jnp.float32), in_BQKF))
  return (ds_in_BKEF, _inner(ds_in_BKEF, s_BKEF, G)), (_scale(du_BQKF, dt_BQKG), ddt_BQKG, dlog_a_BQKG, db_BQKE, dc_BQKE)


def _inner(ds_BKEF, s_BKEF, num_heads):
  """<gradient, state> of every head, (B, K, G)."""
  return jnp.sum(_heads(sum_of_products(ds_BKEF, s_BKEF, axis=2), num_heads), -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def scan(x_BTKF, dt_BTKG, log_a_BTKG, b_BTKE, c_BTKE, state_BKEF, reset_BT, chunk):
  """(y_BTKF, state_BKEF), float32. T is a multiple of chunk; x, b, c share the dtype of the products."""
  return _scan_fwd(x_BTKF, dt_BTKG, log_a_BTKG, b_BTKE, c_BTKE, state_BKEF, reset_BT, chunk)[0]


def _scan_fwd(x_BTKF, dt_BTKG, log_a_BTKG, b_BTKE, c_BTKE, state_BKEF, reset_BT, chunk):
  inputs = jax.tree.map(lambda v: _chunks(v, chunk), (x_BTKF, dt_BTKG, log_a_BTKG, b_BTKE, c_BTKE, reset_BT))
  final_BKEF, (y, starts) = jax.lax.scan(_chunk_forward, state_BKEF, inputs)
  return (_join(y), final_BKEF), (inputs, starts, y, final_BKEF)


def _scan_bwd(chunk, saved, cotangents):
  inputs, starts, y, final_BKEF = saved
  dy_BTKF, dfinal_BKEF = cotangents
  carry = dfinal_BKEF, _inner(dfinal_BKEF, final_BKEF, inputs[1].shape[-1])
  (ds_BKEF, _), grads = jax.lax.scan(
      _chunk_backward, carry, (*inputs, starts, y, _chunks(dy_BTKF, chunk)), reverse=True)
  return *(_join(g.astype(v.dtype)) for g, v in zip(grads, inputs)), ds_BKEF, None


scan.defvjp(_scan_fwd, _scan_bwd)


def ssd(x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, state_BNHE, reset_BT, *, chunk):
  (B, T, N, H), K = x_BTNH.shape, b_BTKE.shape[2]
  chunk = min(chunk, T)
  # Padding tokens have dt = 0 and log a = 0: they add nothing and forget nothing.
  pad = lambda v: jnp.pad(v, ((0, 0), (0, -T % chunk)) + ((0, 0),) * (v.ndim - 2))
  grouped = lambda v: pad(v.reshape(B, T, K, -1))
  state_BKEF = jnp.moveaxis(state_BNHE.reshape(B, K, N // K * H, -1), 3, 2)
  y_BTKF, state_BKEF = scan(grouped(x_BTNH), grouped(dt_BTN), grouped(log_a_BTN), pad(b_BTKE), pad(c_BTKE), state_BKEF,
                            None if reset_BT is None else pad(reset_BT), chunk)
  return y_BTKF.reshape(B, -1, N, H)[:, :T], jnp.moveaxis(state_BKEF, 2, 3).reshape(state_BNHE.shape)
