"""SSD (Dao & Gu, arXiv 2405.21060, section 6): matrix products inside chunks, a carried state between them.

Axes as in api.py; Q and R are two positions of one chunk (query and source).

Within a chunk, with s = cumsum(log a) and no reset between R and Q:

  y_Q = sum_{R <= Q} exp(s_Q - s_R) (C_Q . B_R) u_R + exp(s_Q) C_Q S_in,       u = dt x
  S_out = exp(s_last) S_in + sum_R exp(s_last - s_R) u_R (x) B_R

Chunks run in a scan: only one chunk's (N, Q, R) decays exist at a time, in either direction. The backward
recomputes them from the inputs and the saved state at each chunk's start. For the decays it uses

  d loss / d s_Q = dy_Q . y_Q - u_Q . du_Q,       d loss / d log a_t = sum_{Q >= t} of it,

since s_Q enters y_Q with sign + and u_Q's coefficients with sign -. What lies beyond the chunk adds
<dS_out, S_out> once, so no difference of long sums is ever taken.
"""

import functools

import jax
import jax.numpy as jnp

einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _chunks(v, chunk):
  """(B, T, ...) -> (T / chunk, B, chunk, ...)."""
  return jnp.moveaxis(v.reshape(v.shape[0], -1, chunk, *v.shape[2:]), 1, 0)


def _join(v):
  """The inverse of `_chunks`."""
  v = jnp.moveaxis(v, 0, 1)
  return v.reshape(v.shape[0], -1, *v.shape[3:])


def _decays(log_a_BQN, reset_BQ):
  """Decays of one chunk: pair (B, N, Q, R), from the start (B, Q, N), to the end (B, R, N), whole (B, N)."""
  run_BQ = jnp.cumsum(reset_BQ, axis=1)
  # A reset token's own decay is never used: without it the sums stay small.
  s_BQN = jnp.cumsum(jnp.where(reset_BQ[..., None], 0, log_a_BQN), axis=1)
  length = s_BQN.shape[1]
  s_BNQ = jnp.moveaxis(s_BQN, 2, 1)
  same_BQR = (run_BQ[:, :, None] == run_BQ[:, None]) & jnp.tri(length, dtype=bool)[None]
  # Masked before exp: above the diagonal the difference is positive and could overflow.
  pair_BNQR = jnp.exp(jnp.where(same_BQR[:, None], s_BNQ[..., :, None] - s_BNQ[..., None, :], -jnp.inf))
  start_BQN = jnp.exp(s_BQN) * (run_BQ == 0)[..., None]
  end_BQN = jnp.exp(s_BQN[:, -1:] - s_BQN) * (run_BQ == run_BQ[:, -1:])[..., None]
  return pair_BNQR, start_BQN, end_BQN, start_BQN[:, -1]


def _group(v, num_groups):
  """Splits the head axis of (B, Q, N, ...) into (K groups, G heads each)."""
  return v.reshape(*v.shape[:2], num_groups, -1, *v.shape[3:])


def _chunk_forward(s_BNHE, inputs):
  u_BQNH, log_a_BQN, b_BQKE, c_BQKE, reset_BQ = inputs
  groups, dtype = b_BQKE.shape[2], u_BQNH.dtype
  pair_BNQR, start_BQN, end_BQN, whole_BN = _decays(log_a_BQN, reset_BQ)
  u_BQKGH = _group(u_BQNH, groups)
  s_BKGHE = s_BNHE.reshape(s_BNHE.shape[0], groups, -1, *s_BNHE.shape[2:])
  score_BKQR = einsum("bqke,brke->bkqr", c_BQKE, b_BQKE)
  m_BKGQR = pair_BNQR.reshape(s_BKGHE.shape[:3] + pair_BNQR.shape[2:]) * score_BKQR[:, :, None]
  y_BQKGH = einsum("bkgqr,brkgh->bqkgh", m_BKGQR.astype(dtype), u_BQKGH)
  carried_BQKGH = einsum("bqke,bkghe->bqkgh", c_BQKE.astype(jnp.float32), s_BKGHE)
  y_BQKGH += _group(start_BQN, groups)[..., None] * carried_BQKGH
  decayed_BQKGH = (_group(end_BQN, groups)[..., None] * u_BQKGH).astype(dtype)
  new_BKGHE = einsum("brkgh,brke->bkghe", decayed_BQKGH, b_BQKE)
  out_BNHE = whole_BN[..., None, None] * s_BNHE + new_BKGHE.reshape(s_BNHE.shape)
  return out_BNHE, (y_BQKGH.reshape(u_BQNH.shape), s_BNHE)


def _chunk_backward(carry, inputs):
  """carry: (gradient of the state after the chunk, <gradient, state> after it). Returns those before it."""
  ds_BNHE, inner_BN = carry
  u_BQNH, log_a_BQN, b_BQKE, c_BQKE, reset_BQ, s_BNHE, y_BQNH, dy_BQNH = inputs
  groups, dtype = b_BQKE.shape[2], u_BQNH.dtype
  pair_BNQR, start_BQN, end_BQN, whole_BN = _decays(log_a_BQN, reset_BQ)
  split = lambda s: s.reshape(s.shape[0], groups, -1, *s.shape[2:])
  u_BQKGH, dy_BQKGH = _group(u_BQNH, groups), _group(dy_BQNH, groups)
  s_BKGHE, ds_BKGHE, pair_BKGQR = split(s_BNHE), split(ds_BNHE), split(pair_BNQR)
  score_BKQR = einsum("bqke,brke->bkqr", c_BQKE, b_BQKE)
  m_BKGQR = (pair_BKGQR * score_BKQR[:, :, None]).astype(dtype)
  b32_BQKE, c32_BQKE = b_BQKE.astype(jnp.float32), c_BQKE.astype(jnp.float32)
  in_BQKGH = _group(start_BQN, groups)[..., None] * dy_BQKGH
  out_BQKGH = _group(end_BQN, groups)[..., None] * u_BQKGH
  # Heads of a group share B and C, so the scores' gradient is summed over heads before the products.
  dm_BKGQR = einsum("bqkgh,brkgh->bkgqr", dy_BQKGH.astype(dtype), u_BQKGH)
  dscore_BKQR = jnp.sum(pair_BKGQR * dm_BKGQR, axis=2).astype(dtype)
  dc_BQKE = (einsum("bkqr,brke->bqke", dscore_BKQR, b_BQKE) + einsum("bqkgh,bkghe->bqke", in_BQKGH, s_BKGHE))
  db_BQKE = (einsum("bkqr,bqke->brke", dscore_BKQR, c_BQKE) + einsum("brkgh,bkghe->brke", out_BQKGH, ds_BKGHE))
  du_BQKGH = einsum("bkgqr,bqkgh->brkgh", m_BKGQR, dy_BQKGH.astype(dtype))
  du_BQKGH += _group(end_BQN, groups)[..., None] * einsum("brke,bkghe->brkgh", b32_BQKE, ds_BKGHE)
  du_BQNH = du_BQKGH.reshape(u_BQNH.shape)
  ds_in_BKGHE = split(whole_BN)[..., None, None] * ds_BKGHE + einsum("bqkgh,bqke->bkghe", in_BQKGH, c32_BQKE)
  ds_in_BNHE = ds_in_BKGHE.reshape(s_BNHE.shape)
  each_BQN = jnp.sum(dy_BQNH * y_BQNH, -1) - jnp.sum(u_BQNH * du_BQNH, -1)
  suffix_BQN = jnp.flip(jnp.cumsum(jnp.flip(each_BQN, 1), axis=1), 1) + inner_BN[:, None]
  dlog_a_BQN = jnp.where(reset_BQ[..., None], 0, suffix_BQN)
  inner_in_BN = jnp.sum(ds_in_BNHE * s_BNHE, axis=(-2, -1))
  return (ds_in_BNHE, inner_in_BN), (du_BQNH, dlog_a_BQN, db_BQKE, dc_BQKE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def scan(u_BTNH, log_a_BTN, b_BTKE, c_BTKE, state_BNHE, reset_BT, chunk):
  """(y_BTNH, state_BNHE), float32. T is a multiple of chunk; u, b, c share the dtype of the products."""
  return _scan_fwd(u_BTNH, log_a_BTN, b_BTKE, c_BTKE, state_BNHE, reset_BT, chunk)[0]


def _scan_fwd(u_BTNH, log_a_BTN, b_BTKE, c_BTKE, state_BNHE, reset_BT, chunk):
  inputs = tuple(_chunks(v, chunk) for v in (u_BTNH, log_a_BTN, b_BTKE, c_BTKE, reset_BT))
  final_BNHE, (y, starts) = jax.lax.scan(_chunk_forward, state_BNHE, inputs)
  return (_join(y), final_BNHE), (inputs, starts, y, final_BNHE)


def _scan_bwd(chunk, saved, cotangents):
  inputs, starts, y, final_BNHE = saved
  dy_BTNH, dfinal_BNHE = cotangents
  carry = dfinal_BNHE, jnp.sum(dfinal_BNHE * final_BNHE, axis=(-2, -1))
  (ds_BNHE, _), grads = jax.lax.scan(
      _chunk_backward, carry, (*inputs, starts, y, _chunks(dy_BTNH, chunk)), reverse=True)
  u, log_a, b, c, _ = inputs
  du, dlog_a, db, dc = (_join(g.astype(v.dtype)) for g, v in zip(grads, (u, log_a, b, c)))
  return du, dlog_a, db, dc, ds_BNHE, None


scan.defvjp(_scan_fwd, _scan_bwd)


def ssd(x_BTNH, log_a_BTN, dt_BTN, b_BTKE, c_BTKE, state_BNHE, reset_BT, *, chunk):
  length = x_BTNH.shape[1]
  chunk = min(chunk, length)
  # Padding tokens have dt = 0 and log a = 0: they add nothing and forget nothing.
  pad = lambda v: jnp.pad(v, ((0, 0), (0, -length % chunk)) + ((0, 0),) * (v.ndim - 2))
  u_BTNH = (dt_BTN[..., None] * x_BTNH.astype(jnp.float32)).astype(x_BTNH.dtype)
  y_BTNH, state_BNHE = scan(pad(u_BTNH), pad(log_a_BTN), pad(b_BTKE), pad(c_BTKE), state_BNHE, pad(reset_BT), chunk)
  return y_BTNH[:, :length], state_BNHE
