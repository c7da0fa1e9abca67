"""The fast plain form: a derivative of its own for the inner gradient, a rematerialised scan over chunks.

Axes as in `rule`, and C chunks, leading. Kept for the backward pass: the arguments and, per chunk, the weights
(and momentum) at its start. Everything of size (tokens, inner width) lives for one chunk only.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.fast_weight_chunk import reference
from jaxlm.kernels.fast_weight_chunk.rule import apply_update, dot_in, initial_state, read


def step(rule, weights, k_BNTH, v_BNTH, eta):
  """As `reference.step`."""
  if rule.network == "linear":
    return reference.step(rule, weights, k_BNTH, v_BNTH, eta)
  return reference._rounded(rule, _swiglu_step(rule.dtype, tuple(weights), k_BNTH, v_BNTH, tuple(eta)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _swiglu_step(dtype, weights, k_BNTH, v_BNTH, eta):
  dot = dot_in(dtype)
  y0_BNTF, y2_BNTF, g_BNTF = _project(dot, weights, k_BNTH, v_BNTH)
  silu_BNTF, slope_BNTF, _ = _silu(y0_BNTF)
  return (
      dot("bntf,bnth->bnfh", g_BNTF * y2_BNTF * slope_BNTF, k_BNTH * eta[0]),
      dot("bnth,bntf->bnhf", v_BNTH, silu_BNTF * y2_BNTF * eta[1]),
      dot("bntf,bnth->bnfh", g_BNTF * silu_BNTF, k_BNTH * eta[2]),
  )


def _forward(dtype, weights, k_BNTH, v_BNTH, eta):
  return _swiglu_step(dtype, weights, k_BNTH, v_BNTH, eta), (weights, k_BNTH, v_BNTH, eta)


def _backward(dtype, saved, ct):
  """Spec section 11, with y0 = W0 k, y2 = W2 k, g = W1' v, S = silu(y0), mu = S', and ct = (c0, c1, c2).

  p0 = c0 (k eta0), p2 = c2 (k eta2), p1 = eta1 c1' v are the cotangents of dy0 = g y2 mu, dy2 = g S and S y2; the rest
  is the product rule. eta meets k on the narrow side, so that one column and one per channel cost the same.
  """
  weights, k_BNTH, v_BNTH, eta = saved
  (w0_BNFH, w1_BNHF, w2_BNFH), (c0_BNFH, c1_BNHF, c2_BNFH) = weights, ct
  dot = dot_in(dtype)
  y0_BNTF, y2_BNTF, g_BNTF = _project(dot, weights, k_BNTH, v_BNTH)
  silu_BNTF, slope_BNTF, curve_BNTF = _silu(y0_BNTF)
  p0_BNTF = dot("bnth,bnfh->bntf", k_BNTH * eta[0], c0_BNFH)
  p2_BNTF = dot("bnth,bnfh->bntf", k_BNTH * eta[2], c2_BNFH)
  q1_BNTF = dot("bnth,bnhf->bntf", v_BNTH, c1_BNHF)
  p1_BNTF = q1_BNTF * eta[1]

  g_bar_BNTF = p0_BNTF * y2_BNTF * slope_BNTF + p2_BNTF * silu_BNTF
  y2_bar_BNTF = p0_BNTF * g_BNTF * slope_BNTF + p1_BNTF * silu_BNTF
  y0_bar_BNTF = ((p2_BNTF * g_BNTF + p1_BNTF * y2_BNTF) * slope_BNTF + p0_BNTF * g_BNTF * y2_BNTF * curve_BNTF)

  r0_BNTH = dot("bntf,bnfh->bnth", g_BNTF * y2_BNTF * slope_BNTF, c0_BNFH)
  r2_BNTH = dot("bntf,bnfh->bnth", g_BNTF * silu_BNTF, c2_BNFH)
  k_bar_BNTH = (r0_BNTH * eta[0] + r2_BNTH * eta[2]
                + dot("bntf,bnfh->bnth", y0_bar_BNTF, w0_BNFH) + dot("bntf,bnfh->bnth", y2_bar_BNTF, w2_BNFH))
  hid_BNTF = silu_BNTF * y2_BNTF
  v_bar_BNTH = (dot("bntf,bnhf->bnth", g_bar_BNTF, w1_BNHF)
                + dot("bntf,bnhf->bnth", hid_BNTF * eta[1], c1_BNHF))
  w_bar = (
      dot("bntf,bnth->bnfh", y0_bar_BNTF, k_BNTH),
      dot("bnth,bntf->bnhf", v_BNTH, g_bar_BNTF),
      dot("bntf,bnth->bnfh", y2_bar_BNTF, k_BNTH),
  )
  eta_bar = (r0_BNTH * k_BNTH, q1_BNTF * hid_BNTF, r2_BNTH * k_BNTH)
  like = lambda x, to: x.astype(to.dtype)
  eta_bar = tuple(like(x if e.shape[-1] > 1 else x.sum(-1, keepdims=True), e) for x, e in zip(eta_bar, eta))
  return tuple(map(like, w_bar, weights)), like(k_bar_BNTH, k_BNTH), like(v_bar_BNTH, v_BNTH), eta_bar


_swiglu_step.defvjp(_forward, _backward)


def _project(dot, weights, k_BNTH, v_BNTH):
  w0_BNFH, w1_BNHF, w2_BNFH = weights
  return (dot("bnth,bnfh->bntf", k_BNTH, w0_BNFH), dot("bnth,bnfh->bntf", k_BNTH, w2_BNFH),
          dot("bnth,bnhf->bntf", v_BNTH, w1_BNHF))


def _silu(y):
  """silu, its first and its second derivative."""
  s = jax.nn.sigmoid(y)
  return y * s, s * (1 + y * (1 - s)), s * (1 - s) * (2 + y * (1 - 2 * s))


def listed(rule, state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, items):
  """As `reference.fast_weight_chunk`; each item is rematerialised."""
  out_BNTH = jnp.zeros_like(v_BNTH)
  learn = jax.checkpoint(functools.partial(_learn, rule))
  look = jax.checkpoint(functools.partial(read, rule))
  for start, stop, update, apply in items:
    part = slice(start, stop)
    if update:
      m_BN = None if beta_BNT is None else beta_BNT[..., part].mean(-1)
      state = learn(state, k_BNTH[..., part, :], v_BNTH[..., part, :], tuple(e[..., part, :] for e in eta), m_BN)
    if apply:
      out_BNTH = out_BNTH.at[..., part, :].set(look(state.current, q_BNTH[..., part, :]).astype(out_BNTH.dtype))
  return out_BNTH, state


def _learn(rule, state, k_BNTH, v_BNTH, eta, m_BN):
  return apply_update(rule, state, step(rule, state.current, k_BNTH, v_BNTH, eta), m_BN)


def causal(rule, weights, chunks, tail, axis_name=None):
  """Reads and learns each of `chunks`, then reads `tail`. Returns (o_CBNTH of the chunks, o_BNTH of the tail, state).

  chunks: (q, k, v, eta, beta_CBNT or None, ids_CBT or None, last_CB or None), stacked over the chunks but the last.
  tail: (q_BNTH, ids_BT or None) of the last chunk.
  ids: segment ids; last_CB: the id of each chunk's last token. With them a token reads the carried weights only if
  they were written by its own document, and a chunk is learned only by the document that reaches its end: at
  most one document spans a boundary, so one carried state is enough.
  axis_name: mesh axis that the tokens of every chunk are split over (inside shard_map): steps are summed over it.
  """
  q_CBNTH, _, _, _, beta_CBNT, ids_CBT, last_CB = chunks
  start = initial_state(rule, weights, momentum=beta_CBNT is not None)
  if axis_name is not None:
    total = lambda x: jax.lax.psum(x, axis_name)
    mean = lambda x: jax.lax.pmean(x.mean(-1), axis_name)
    # A device's tokens give its own cotangent of the weights; the transpose of this cast sums them.
    local = lambda x: jax.lax.pcast(x, axis_name, to="varying")
  else:
    total, mean, local = (lambda x: x), (lambda x: x.mean(-1)), (lambda x: x)

  def body(carry, chunk):
    state, owner_B = carry
    q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, ids_BT, last_B = chunk
    o_BNTH = _read_own(rule, state, start, q_BNTH, ids_BT, owner_B)
    if ids_BT is not None:
      state = _where(last_B == owner_B, state, start)
      learns_BT = (ids_BT == last_B[:, None]) & (ids_BT > 0)
      eta = tuple(e * learns_BT[:, None, :, None] for e in eta)
    delta = total(step(rule, jax.tree.map(local, state.current), k_BNTH, v_BNTH, eta))
    state = apply_update(rule, state, delta, None if beta_BNT is None else mean(beta_BNT))
    return (state, last_B), o_BNTH.astype(v_BNTH.dtype)

  # -1, which is no document. Written as a minimum it varies over the mesh as last_CB does, which scan demands.
  nobody_B = None if ids_CBT is None else jnp.min(last_CB, 0, initial=-1)
  carry, o_CBNTH = (start, nobody_B), None
  if q_CBNTH.shape[0]:
    carry, o_CBNTH = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), carry, chunks)
  state, owner_B = carry
  q_BNTH, ids_BT = tail
  return o_CBNTH, jax.checkpoint(functools.partial(_read_own, rule))(state, start, q_BNTH, ids_BT, owner_B), state


def _read_own(rule, state, start, q_BNTH, ids_BT, owner_B):
  """Tokens of the document that owns the carried state read it; the others read the initial weights."""
  if ids_BT is None:
    return read(rule, state.current, q_BNTH)
  own_BT = ids_BT == owner_B[:, None]
  mixed = lambda: jnp.where(own_BT[:, None, :, None], read(rule, state.current, q_BNTH),
                            read(rule, start.current, q_BNTH))
  # Most chunks lie inside one document of every row; only the others pay for two reads.
  return jax.lax.cond(jnp.all(own_BT), lambda: read(rule, state.current, q_BNTH), mixed)


def _where(keep_B, state, start):
  def pick(a, b):
    return jnp.where(keep_B.reshape(keep_B.shape + (1,) * (a.ndim - 1)), a, b)
  return jax.tree.map(pick, state, start)
