"""One forward pass of a batch of rows, and rows in and out of a decoding state.

Axes: B batch, T new tokens, V vocab.

A batch is computed at once, or row by row and token by token (`deterministic`). Sums are then taken
in the same order whatever stands beside a row, so that its logits do not depend on the batch, on
how many tokens a call brings, or on padding, to the last bit. It is slower; its memory is the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

PIECE = 64  # prompt tokens per prefill call; caches grow in this unit
LEAST = 8  # tokens of the last prefill call


def extend(model, params, tokens_BT, state, valid_BT, *, deterministic=False, **structure):
  """(float32 logits (B, T, V), state) after more tokens; valid_BT: int32, 0 is padding.

  model: the config. structure: `positions_BT` and `structure` of `Decoder.extend`, which
  deterministic passes do not take.
  """

  def network(tokens, state, valid, **structure):
    return model.build().apply(
      {"params": params}, tokens, state, valid, method="extend", **structure
    )

  if not deterministic:
    return network(tokens_BT, state, valid_BT, **structure)
  axes = row_axes(model, state)

  def token(state, piece):
    logits_11V, state = network(piece[0][None, None], state, piece[1][None, None])
    return state, logits_11V[0, 0]

  def row(piece):
    tokens_T, valid_T, own = piece
    own = jax.tree.map(lambda axis, x: x if axis < 0 else jnp.expand_dims(x, axis), axes, own)
    own, logits_TV = _scan(token, own, (tokens_T, valid_T))
    own = jax.tree.map(lambda axis, x: x if axis < 0 else jnp.squeeze(x, axis), axes, own)
    return logits_TV, own

  B = len(tokens_BT)
  rows = jax.tree.map(
    lambda axis, x: jnp.broadcast_to(x, (B, *x.shape)) if axis < 0 else jnp.moveaxis(x, axis, 0),
    axes,
    state,
  )
  _, (logits_BTV, rows) = _scan(lambda _, piece: ((), row(piece)), (), (tokens_BT, valid_BT, rows))
  state = jax.tree.map(lambda axis, x: x[0] if axis < 0 else jnp.moveaxis(x, 0, axis), axes, rows)
  return logits_BTV, state


def _scan(body, carry, xs):
  """jax.lax.scan whose number of steps the compiler does not know.

  A loop of one step would be taken apart, and its sums joined with what stands around it.
  """
  num = len(jax.tree.leaves(xs)[0])
  _, shapes = jax.eval_shape(body, carry, jax.tree.map(lambda x: x[0], xs))
  out = jax.tree.map(lambda s: jnp.zeros((num, *s.shape), s.dtype), shapes)

  def step(i, both):
    carry, out = both
    carry, y = body(carry, jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), xs))
    return carry, jax.tree.map(lambda o, v: jax.lax.dynamic_update_index_in_dim(o, v, i, 0), out, y)

  return jax.lax.fori_loop(0, jax.lax.optimization_barrier(jnp.int32(num)), step, (carry, out))


def row_axes(model, state):
  """The batch axis of every array of a decoding state, -1 where it has none."""
  for rewindable in (0, 1):
    axes = _row_axes(model, rewindable)
    if jax.tree.structure(axes) == jax.tree.structure(state):
      return axes
  raise ValueError(f"{type(state).__name__} is no decoding state of {type(model).__name__}")


@functools.lru_cache(maxsize=64)
def _row_axes(model, rewindable: int):
  small, large = (
    jax.eval_shape(lambda n=n: model.init_state(n, PIECE, rewindable)) for n in (2, 3)
  )

  def axis(a, b):
    differs = [i for i, (m, n) in enumerate(zip(a.shape, b.shape)) if m != n]
    return differs[0] if differs else -1

  return jax.tree.map(axis, small, large)


def put_rows(model, state, rows, at_N):
  """The state with the rows of another, of N rows, at the places at_N; a place outside is dropped."""

  def put(axis, x, new):
    return x if axis < 0 else x.at[(slice(None),) * axis + (at_N,)].set(new, mode="drop")

  return jax.tree.map(put, row_axes(model, state), state, rows)


def take_rows(model, state, at_N):
  """The state of N rows: those at the places at_N."""
  return jax.tree.map(
    lambda axis, x: x if axis < 0 else jnp.take(x, at_N, axis=axis), row_axes(model, state), state
  )


def prefill(model, params, tokens_BT, length_B, state, *, deterministic: bool = False):
  """Feeds right-padded prompts, int32 NumPy arrays, in pieces.

  Returns (logits_BV after each row's last token, state). The state is given away.
  """
  logits_BV, size = None, min(PIECE, model.max_len or PIECE)  # a table of positions may be shorter
  for start in range(0, int(length_B.max()), size):
    piece_BT = jnp.asarray(tokens_BT[:, start : start + size])
    logits_BV, state = _prefill_piece(
      params,
      state,
      piece_BT,
      jnp.asarray(length_B),
      start,
      logits_BV,
      config=model,
      deterministic=deterministic,
    )
  return logits_BV, state


@functools.partial(jax.jit, static_argnames=("config", "deterministic"), donate_argnums=1)
def _prefill_piece(params, state, tokens_BT, length_B, start, logits_BV, *, config, deterministic):
  index_BT = start + jnp.arange(tokens_BT.shape[1])[None, :]
  valid_BT = (index_BT < length_B[:, None]).astype(jnp.int32)
  out_BTV, state = extend(config, params, tokens_BT, state, valid_BT, deterministic=deterministic)
  last_B = length_B - 1 - start
  here_B1 = ((last_B >= 0) & (last_B < tokens_BT.shape[1]))[:, None]
  picked_BV = jnp.take_along_axis(
    out_BTV, jnp.clip(last_B, 0, tokens_BT.shape[1] - 1)[:, None, None], axis=1
  )[:, 0]
  return (picked_BV if logits_BV is None else jnp.where(here_B1, picked_BV, logits_BV)), state


def round_up(n: int) -> int:
  return -(-n // PIECE) * PIECE


def padded(prompts, length_B, whole: bool = False):
  """int32 (B, T) NumPy array of the prompts, padded on the right: T is a number of pieces, the last one cut to a
  power of two from LEAST on. whole: it is not cut, so that other prompts run in the same shapes.
  """
  most = int(length_B.max())
  T = round_up(most)
  if not whole and most % PIECE:
    T = most - most % PIECE + max(1 << (most % PIECE - 1).bit_length(), LEAST)
  tokens_BT = np.zeros((len(prompts), T), np.int32)
  for b, prompt in enumerate(prompts):
    tokens_BT[b, : len(prompt)] = prompt.tokens
  return tokens_BT
