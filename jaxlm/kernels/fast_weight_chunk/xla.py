"""The fast plain form: derivatives of its own for the inner gradient and for the walk over chunks.

Axes as in `rule`. Kept for the backward pass: the arguments and, per chunk, the weights at its
start and the step (or momentum) that moved them. Everything of size (tokens, inner width) lives for
one chunk only, and tokens are read and written where they lie: nothing of size (tokens, width) is
copied but the results.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.fast_weight_chunk import reference
from jaxlm.kernels.fast_weight_chunk.reference import joined
from jaxlm.kernels.fast_weight_chunk.rule import (
  FastWeights,
  Rule,
  add_momentum,
  apply_moved,
  dot_in,
  initial_state,
  read,
)


def step(rule, weights, k_BNTH, v_BNTH, eta):
  """As `reference.step`."""
  if rule.network == "linear" or any(
    e.shape[-1] > 1 for e in eta
  ):  # one rate per channel: nobody trains it
    return reference.step(rule, weights, k_BNTH, v_BNTH, eta)
  return reference._rounded(
    rule, _swiglu_step(rule.dtype, tuple(weights), k_BNTH, v_BNTH, tuple(eta))
  )


# Two habits of what follows. Products that share an operand are one product of stacked matrices:
# heads are narrow, and a few large products are faster. And work arrays are (F, T), so that every
# sum over tokens is a plain A B: the CPU's compiler has no fast program for A' B (a twentieth of
# the speed, bench/RESULTS.md); only narrow matrices are turned.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _swiglu_step(dtype, weights, k_BNTH, v_BNTH, eta):
  w0_BNFH, w1_BNHF, w2_BNFH = weights
  dot, (e0_BN1T, e1_BN1T, e2_BN1T) = dot_in(dtype), (e.mT for e in eta)
  y0_BNFT, y2_BNFT = _halves(dot("bnfh,bnth->bnft", _rows(w0_BNFH, w2_BNFH), k_BNTH))
  g_BNFT = dot("bnfh,bnth->bnft", w1_BNHF.mT, v_BNTH)
  silu_BNFT, slope_BNFT, _ = _silu(y0_BNFT)
  dy_BNFT = _rows(g_BNFT * y2_BNFT * slope_BNFT * e0_BN1T, g_BNFT * silu_BNFT * e2_BN1T)
  delta0_BNFH, delta2_BNFH = _halves(dot("bnft,bnth->bnfh", dy_BNFT, k_BNTH))
  delta1_BNFH = dot("bnft,bnth->bnfh", silu_BNFT * y2_BNFT * e1_BN1T, v_BNTH)
  return delta0_BNFH, delta1_BNFH.mT, delta2_BNFH


def _forward(dtype, weights, k_BNTH, v_BNTH, eta):
  return _swiglu_step(dtype, weights, k_BNTH, v_BNTH, eta), (weights, k_BNTH, v_BNTH, eta)


def step_backward(dtype, saved, ct):
  """docs/specs/lact.md, section 11, with y0 = W0 k, y2 = W2 k, g = W1' v, S = silu(y0), mu = S',
  and ct = (c0, c1, c2).

  p0 = c0 k eta0, p2 = c2 k eta2, p1 = c1' v eta1 are the cotangents of dy0 = g y2 mu, dy2 = g S and
  S y2; the rest is the product rule.
  """
  weights, k_BNTH, v_BNTH, eta = saved
  (w0_BNFH, w1_BNHF, w2_BNFH), (c0_BNFH, c1_BNHF, c2_BNFH) = weights, ct
  dot, (e0_BN1T, e1_BN1T, e2_BN1T) = dot_in(dtype), (e.mT for e in eta)
  by_k, by_v = _rows(w0_BNFH, w2_BNFH, c0_BNFH, c2_BNFH), _rows(w1_BNHF.mT, c1_BNHF.mT)
  y_BNFT, p_BNFT = _halves(dot("bnfh,bnth->bnft", by_k, k_BNTH))
  (y0_BNFT, y2_BNFT), (raw0_BNFT, raw2_BNFT) = _halves(y_BNFT), _halves(p_BNFT)
  g_BNFT, raw1_BNFT = _halves(dot("bnfh,bnth->bnft", by_v, v_BNTH))
  silu_BNFT, slope_BNFT, curve_BNFT = _silu(y0_BNFT)
  p0_BNFT, p1_BNFT, p2_BNFT = raw0_BNFT * e0_BN1T, raw1_BNFT * e1_BN1T, raw2_BNFT * e2_BN1T
  dy0_BNFT, dy2_BNFT, hid_BNFT = (
    g_BNFT * y2_BNFT * slope_BNFT,
    g_BNFT * silu_BNFT,
    silu_BNFT * y2_BNFT,
  )

  g_bar_BNFT = p0_BNFT * y2_BNFT * slope_BNFT + p2_BNFT * silu_BNFT
  y2_bar_BNFT = p0_BNFT * g_BNFT * slope_BNFT + p1_BNFT * silu_BNFT
  y0_bar_BNFT = (
    p2_BNFT * g_BNFT + p1_BNFT * y2_BNFT
  ) * slope_BNFT + p0_BNFT * g_BNFT * y2_BNFT * curve_BNFT
  y_bar_BNFT = _rows(y0_bar_BNFT, y2_bar_BNFT)

  k_bar_BNHT = dot(
    "bnhf,bnft->bnht", by_k.mT, _rows(y_bar_BNFT, dy0_BNFT * e0_BN1T, dy2_BNFT * e2_BN1T)
  )
  v_bar_BNHT = dot("bnhf,bnft->bnht", by_v.mT, _rows(g_bar_BNFT, hid_BNFT * e1_BN1T))
  w0_bar_BNFH, w2_bar_BNFH = _halves(dot("bnft,bnth->bnfh", y_bar_BNFT, k_BNTH))
  w1_bar_BNFH = dot("bnft,bnth->bnfh", g_bar_BNFT, v_BNTH)

  # A product and not x.sum(-2), for which the CPU's compiler takes ten times as long.
  def along(a, b):
    return jnp.einsum("bnft,bnft->bnt", a, b)[..., None]

  eta_bar = along(raw0_BNFT, dy0_BNFT), along(raw1_BNFT, hid_BNFT), along(raw2_BNFT, dy2_BNFT)

  def like(tree, to):
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, to)

  return like(
    ((w0_bar_BNFH, w1_bar_BNFH.mT, w2_bar_BNFH), k_bar_BNHT.mT, v_bar_BNHT.mT, eta_bar),
    (weights, k_BNTH, v_BNTH, eta),
  )


_swiglu_step.defvjp(_forward, step_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _swiglu_read(dtype, weights, x_BNTH):
  """`rule.read` for many tokens."""
  w0_BNFH, w1_BNHF, w2_BNFH = weights
  dot = dot_in(dtype)
  y0_BNFT, y2_BNFT = _halves(dot("bnfh,bnth->bnft", _rows(w0_BNFH, w2_BNFH), x_BNTH))
  return dot("bnhf,bnft->bnht", w1_BNHF, jax.nn.silu(y0_BNFT) * y2_BNFT).mT


def read_backward(dtype, saved, ct_BNTH):
  (w0_BNFH, w1_BNHF, w2_BNFH), x_BNTH = weights, _ = saved
  dot, by_x = dot_in(dtype), _rows(w0_BNFH, w2_BNFH)
  y0_BNFT, y2_BNFT = _halves(dot("bnfh,bnth->bnft", by_x, x_BNTH))
  silu_BNFT, slope_BNFT, _ = _silu(y0_BNFT)
  hid_bar_BNFT = dot("bnfh,bnth->bnft", w1_BNHF.mT, ct_BNTH)
  y_bar_BNFT = _rows(hid_bar_BNFT * y2_BNFT * slope_BNFT, hid_bar_BNFT * silu_BNFT)
  w0_bar_BNFH, w2_bar_BNFH = _halves(dot("bnft,bnth->bnfh", y_bar_BNFT, x_BNTH))
  w1_bar_BNFH = dot("bnft,bnth->bnfh", silu_BNFT * y2_BNFT, ct_BNTH)
  x_bar_BNHT = dot("bnhf,bnft->bnht", by_x.mT, y_bar_BNFT)
  w_bar = w0_bar_BNFH, w1_bar_BNFH.mT, w2_bar_BNFH
  return jax.tree.map(lambda x, y: x.astype(y.dtype), (w_bar, x_bar_BNHT.mT), (weights, x_BNTH))


_swiglu_read.defvjp(
  lambda dtype, weights, x_BNTH: (_swiglu_read(dtype, weights, x_BNTH), (weights, x_BNTH)),
  read_backward,
)


def _rows(*matrices):
  return jnp.concatenate(matrices, -2)


def _halves(x):
  middle = x.shape[-2] // 2
  return x[..., :middle, :], x[..., middle:, :]


def _silu(y):
  """silu, its first and its second derivative."""
  s = jax.nn.sigmoid(y)
  return y * s, s * (1 + y * (1 - s)), s * (1 - s) * (2 + y * (1 - 2 * s))


class Form(NamedTuple):
  """A rule and what computes it: `step` as `reference.step`, `read` as `rule.read` (in any dtype),
  `apply_moved` as `rule.apply_moved`.
  """

  rule: Rule
  step: Callable
  read: Callable
  apply_moved: Callable


def form(rule) -> Form:
  return Form(rule, step, _read, apply_moved)


def listed(form, state, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT, items):
  """As `reference.fast_weight_chunk`; each item is rematerialised."""
  outs = []
  learn = jax.checkpoint(functools.partial(_learn, form))
  look = jax.checkpoint(functools.partial(form.read, form.rule))
  for start, stop, update, apply in items:
    part = slice(start, stop)
    if update:
      m_BN = None if beta_BNT is None else beta_BNT[..., part].mean(-1)
      state = learn(
        state, k_BNTH[..., part, :], v_BNTH[..., part, :], tuple(e[..., part, :] for e in eta), m_BN
      )
    if apply:
      outs.append(look(state.current, q_BNTH[..., part, :]).astype(v_BNTH.dtype))
  return joined(outs, v_BNTH), state


def _learn(form, state, k_BNTH, v_BNTH, eta, m_BN):
  moved = form.step(form.rule, state.current, k_BNTH, v_BNTH, eta)
  if state.momentum is not None:
    moved = add_momentum(moved, state.momentum, m_BN)
  return form.apply_moved(form.rule, state, moved)


class Tokens(NamedTuple):
  """What a sequence brings. beta_BNT None: no momentum. ids_BT, last_BC (the id of each learned
  chunk's last token): None where one state runs through the whole row."""

  q_BNTH: jax.Array
  k_BNTH: jax.Array
  v_BNTH: jax.Array
  eta: tuple
  beta_BNT: jax.Array | None
  ids_BT: jax.Array | None
  last_BC: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def causal(form, chunk, count, axis_name, weights, tokens: Tokens):
  """Reads and learns `count` chunks of `chunk` tokens, then reads what is left. Returns (o_BNTH,
  FastWeights).

  ids: segment ids. With them a token reads the carried weights only if they were written by its own
  document, and a chunk is learned only by the document that reaches its end: at most one document
  spans a boundary, so one carried state is enough.
  axis_name: mesh axis that the tokens of every chunk are split over (inside shard_map): steps are
  summed over it.
  """
  return _walk(form, chunk, count, axis_name, weights, tokens, keep=False)[:2]


def _walk(form, chunk, count, axis_name, weights, tokens, keep):
  """(o_BNTH, final state, what the backward pass needs of each chunk).

  Invariant: with momentum, that of the state after chunk c is `moved` of chunk c
  (`rule.add_momentum`, kept as it is by `apply_moved`). Hence `_causal_backward` gets the momentum
  that chunk c + 1 finds from `moved`, and no second copy is kept.
  """
  start = initial_state(form.rule, weights, momentum=tokens.beta_BNT is not None)

  def body(carry, index):
    state, o_BNTH = carry
    o_part, new, moved = _chunk(
      form, axis_name, state, start, _part(tokens, index, chunk), _owner(tokens, index)
    )
    kept = (state.current, state.master, moved) if keep else None
    return (new, _put(o_BNTH, o_part, index * chunk)), kept

  carry, kept = (start, jnp.zeros_like(tokens.v_BNTH)), None
  if count:
    carry, kept = jax.lax.scan(body, carry, jnp.arange(count))
  state, o_BNTH = carry
  o_part = _read_own(
    form, axis_name, state, start, *_rest(tokens, count * chunk), _owner(tokens, count)
  )
  return _put(o_BNTH, o_part, count * chunk), state, kept


def _chunk(form, axis_name, state, start, part: Tokens, owner_B, known=None):
  """One chunk: (o_BNTH, state after it, what moved the weights). known: that third result, where it
  is at hand.
  """
  if axis_name is not None:
    total, mean = (
      (lambda x: jax.lax.psum(x, axis_name)),
      (lambda x: jax.lax.pmean(x.mean(-1), axis_name)),
    )
  else:
    total, mean = (lambda x: x), (lambda x: x.mean(-1))
  o_BNTH = _read_own(form, axis_name, state, start, part.q_BNTH, part.ids_BT, owner_B)
  eta = part.eta
  if part.ids_BT is not None:
    state = _where(part.last_BC == owner_B, state, start)
    learns_BT = (part.ids_BT == part.last_BC[:, None]) & (part.ids_BT > 0)
    eta = tuple(e * learns_BT[:, None, :, None] for e in eta)

  def move(current, momentum, k_BNTH, v_BNTH, eta, beta_BNT):
    delta = total(form.step(form.rule, _local(axis_name, current), k_BNTH, v_BNTH, eta))
    return delta if beta_BNT is None else add_momentum(delta, momentum, mean(beta_BNT))

  args = (state.current, state.momentum, part.k_BNTH, part.v_BNTH, eta, part.beta_BNT)
  moved = move(*args) if known is None else _known(move, known, args)
  return o_BNTH.astype(part.v_BNTH.dtype), form.apply_moved(form.rule, state, moved), moved


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _known(fn, value, args):
  """fn(*args), whose value is at hand: only its derivative is computed."""
  return value


def _known_backward(fn, saved, ct):
  value, args = saved
  return jax.tree.map(jnp.zeros_like, value), jax.vjp(fn, *args)[1](ct)


_known.defvjp(lambda fn, value, args: (value, (value, args)), _known_backward)


def _causal_forward(form, chunk, count, axis_name, weights, tokens):
  o_BNTH, state, kept = _walk(form, chunk, count, axis_name, weights, tokens, keep=True)
  return (o_BNTH, state), (weights, tokens, state, kept)


def _causal_backward(form, chunk, count, axis_name, saved, cts):
  """The chunks backwards, each differentiated from its kept start; cotangents of the tokens are
  written in place.
  """
  weights, tokens, state, kept = saved
  o_bar_BNTH, state_bar = cts
  start, start_vjp = jax.vjp(
    lambda w: initial_state(form.rule, w, momentum=tokens.beta_BNT is not None), weights
  )
  at = count * chunk
  q_BNTH, ids_BT = _rest(tokens, at)

  def read_rest(state, start, q_BNTH):
    return _read_own(form, axis_name, state, start, q_BNTH, ids_BT, _owner(tokens, count)).astype(
      tokens.v_BNTH.dtype
    )

  read_state_bar, start_bar, q_part = jax.vjp(read_rest, state, start, q_BNTH)[1](
    o_bar_BNTH[:, :, at:]
  )
  state_bar = jax.tree.map(jnp.add, state_bar, read_state_bar)
  real = tokens._replace(ids_BT=None, last_BC=None)
  tokens_bar = jax.tree.map(jnp.zeros_like, real)
  tokens_bar = tokens_bar._replace(q_BNTH=_put(tokens_bar.q_BNTH, q_part, at))

  def body(carry, chunk_of):
    state_bar, start_bar, tokens_bar = carry
    index, (current, master, moved), before = chunk_of
    part, owner_B = _part(tokens, index, chunk), _owner(tokens, index)

    def run(state, start, real):
      return _chunk(
        form,
        axis_name,
        state,
        start,
        real._replace(ids_BT=part.ids_BT, last_BC=part.last_BC),
        owner_B,
        known=moved,
      )[:2]

    vjp = jax.vjp(
      run,
      FastWeights(current, master, before, start.norms),
      start,
      part._replace(ids_BT=None, last_BC=None),
    )[1]
    o_part_bar = _part(o_bar_BNTH, index, chunk)
    state_bar, more_start_bar, part_bar = vjp((o_part_bar, state_bar))
    tokens_bar = jax.tree.map(lambda x, y: _put(x, y, index * chunk), tokens_bar, part_bar)
    return (state_bar, jax.tree.map(jnp.add, start_bar, more_start_bar), tokens_bar), None

  carry = state_bar, start_bar, tokens_bar
  if count:
    moved = kept[2]
    before = None  # the momentum that each chunk found
    if start.momentum is not None:
      before = jax.tree.map(
        lambda first, m: jnp.concatenate([first[None], m[:-1]]), start.momentum, moved
      )
    carry, _ = jax.lax.scan(body, carry, (jnp.arange(count), kept, before), reverse=True)
  state_bar, start_bar, tokens_bar = carry
  (weights_bar,) = start_vjp(jax.tree.map(jnp.add, state_bar, start_bar))
  return weights_bar, tokens_bar


causal.defvjp(_causal_forward, _causal_backward)


def _part(tree, index, chunk):
  """Chunk `index` of everything that has tokens."""

  def one(x):
    return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=2)

  if not isinstance(tree, Tokens):
    return one(tree)
  out = jax.tree.map(one, tree._replace(ids_BT=None, last_BC=None))
  if tree.ids_BT is None:
    return out
  return out._replace(
    ids_BT=jax.lax.dynamic_slice_in_dim(tree.ids_BT, index * chunk, chunk, axis=1),
    last_BC=jax.lax.dynamic_index_in_dim(tree.last_BC, index, 1, keepdims=False),
  )


def _put(x, part, start):
  return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), start, axis=2)


def _rest(tokens, at):
  return tokens.q_BNTH[:, :, at:], None if tokens.ids_BT is None else tokens.ids_BT[:, at:]


def _owner(tokens, index):
  """The document that wrote the weights which chunk `index` finds: -1, which is no document, before
  the first.
  """
  if tokens.ids_BT is None:
    return None
  before_B = jax.lax.dynamic_index_in_dim(
    tokens.last_BC, jnp.maximum(index - 1, 0), 1, keepdims=False
  )
  return jnp.where(index > 0, before_B, -1)


def _read(rule, weights, x_BNTH):
  return (
    read(rule, weights, x_BNTH)
    if rule.network == "linear"
    else _swiglu_read(rule.dtype, tuple(weights), x_BNTH)
  )


def _read_own(form, axis_name, state, start, q_BNTH, ids_BT, owner_B):
  """Tokens of the document that owns the carried state read it; the others read the initial
  weights.
  """
  # Cast here and not in the branches below: devices may take different ones, and the transpose of
  # the cast is a sum.
  current, first = _local(axis_name, (state.current, start.current))
  if ids_BT is None:
    return form.read(form.rule, current, q_BNTH)
  own_BT = ids_BT == owner_B[:, None]

  def mixed():
    return jnp.where(
      own_BT[:, None, :, None],
      form.read(form.rule, current, q_BNTH),
      form.read(form.rule, first, q_BNTH),
    )

  # Most chunks lie inside one document of every row; only the others pay for two reads.
  return jax.lax.cond(jnp.all(own_BT), lambda: form.read(form.rule, current, q_BNTH), mixed)


def _local(axis_name, tree):
  """A device's tokens give its own cotangent of what all devices share; the transpose of this cast
  sums them.
  """
  return (
    tree
    if axis_name is None
    else jax.tree.map(lambda x: jax.lax.pcast(x, axis_name, to="varying"), tree)
  )


def _where(keep_B, state, start):
  def pick(a, b):
    return jnp.where(keep_B.reshape(keep_B.shape + (1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(pick, state, start)
