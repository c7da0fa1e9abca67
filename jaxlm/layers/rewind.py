"""Going back: `rewind(state, length_B)` is the decoding state of every row when it had length_B tokens.

Axes: B batch, T new tokens, S slots, R states that are kept, J inputs that a convolution reads,
F channels.

A state that is begun with `rewindable=n` can go back by up to n tokens, row by row, from the
longest length that the row has had. It becomes the state that the row had then, to the last bit. Of
a call of at most n tokens, a draft say, that is the state that the call would have returned if the
tokens from length_B on had been padding.

How each kind of state goes back:

  key-value cache    its keys have an index; those from length_B on are emptied (`layers.cache`)
  recurrence         a `Trail` keeps the states after each of the last n tokens, and goes back to one
  convolution        `Past` keeps n more inputs than it reads, and moves them

A recurrence cannot be inverted, and to compute it again from inputs would round in another order;
hence its states are kept: n + 1 times the memory. With n = 0, the default, states are the bare
arrays, the compiled program has none of this, and `rewind` refuses them.

A layer with a recurrence begins with `trail(state, rewindable)` and goes on with `walk`, which also
takes a bare state. A layer whose state after each token is at hand anyway uses `latest` and
`last_valid`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError

CANNOT = (
  "this state cannot go back: begin it with init_state(..., rewindable=n), n the tokens that a row may "
  "go back"
)


class Trail(NamedTuple):
  """States of a recurrence. states: a pytree of (B, R, ...); slot n mod R has the state after n
  tokens of the row. length_B: int32, tokens that the row has now.
  """

  states: Any
  length_B: jax.Array

  def rewound(self, length_B) -> "Trail":
    until_B = jnp.broadcast_to(length_B, self.length_B.shape)
    return self._replace(length_B=jnp.minimum(self.length_B, until_B))


class Past(NamedTuple):
  """Inputs of a causal convolution, newest last, zeros before the first token; length_B: int32,
  tokens of the row.
  """

  inputs_BSF: jax.Array
  length_B: jax.Array

  def rewound(self, length_B) -> "Past":
    """The inputs from length_B on taken away, and the others moved to the end."""
    until_B, S = jnp.broadcast_to(length_B, self.length_B.shape), self.inputs_BSF.shape[-2]
    by_B = jnp.maximum(self.length_B - until_B, 0)
    index_S = jnp.arange(S).reshape((1,) * by_B.ndim + (S,))
    from_BS1 = (index_S - by_B[..., None])[..., None]
    moved_BSF = jnp.take_along_axis(self.inputs_BSF, jnp.maximum(from_BS1, 0), axis=-2)
    return Past(jnp.where(from_BS1 >= 0, moved_BSF, 0), jnp.minimum(self.length_B, until_B))


class Reach(NamedTuple):
  """How far the rows of a model's state can go back. oldest_B: int32, the shortest length that is
  still kept; None where the state cannot go back. by_B: int32, `rewindable`.
  """

  oldest_B: jax.Array | None = None
  by_B: jax.Array | None = None

  @classmethod
  def begin(cls, batch_size: int, rewindable: int) -> "Reach":
    if not rewindable:
      return cls()
    return cls(jnp.zeros(batch_size, jnp.int32), jnp.full(batch_size, rewindable, jnp.int32))

  def after(self, length_B) -> "Reach":
    """When the rows have grown to length_B."""
    if self.oldest_B is None:
      return self
    return self._replace(oldest_B=jnp.maximum(self.oldest_B, length_B - self.by_B))

  def allowed(self, wanted_B, length_B):
    """The lengths that rows of length_B go back to. ValueError for what is not kept; where the
    values are traced, the oldest that is.
    """
    if self.oldest_B is None:
      raise ConfigError(CANNOT)
    wanted_B = jnp.asarray(wanted_B, jnp.int32)
    short_B = wanted_B < self.oldest_B
    if not isinstance(short_B, jax.core.Tracer) and bool(jnp.any(short_B)):
      row = int(jnp.argmax(short_B))
      raise ValueError(
        f"row {row} cannot go back to {wanted_B[row]} tokens: the oldest state that is kept is that of "
        f"{self.oldest_B[row]}; begin the state with a larger `rewindable` than {self.by_B[row]}"
      )
    return jnp.clip(wanted_B, self.oldest_B, length_B)


def trail(state, rewindable: int):
  """`state`, a pytree with the batch axis first, so that it can go back by `rewindable` tokens.

  With rewindable = 0, or a state without arrays, `state` itself.
  """
  leaves = jax.tree.leaves(state)
  if not rewindable or not leaves:
    return state
  kept = jax.tree.map(lambda x: jnp.repeat(x[:, None], rewindable + 1, axis=1), state)
  return Trail(kept, jnp.zeros(leaves[0].shape[0], jnp.int32))


def latest(state):
  """The state after the last token, of a Trail or of a bare state."""
  if not isinstance(state, Trail):
    return state
  R = jax.tree.leaves(state.states)[0].shape[1]
  row_B = jnp.arange(state.length_B.shape[0])
  return jax.tree.map(lambda x: x[row_B, state.length_B % R], state.states)


def walk(step, state, inputs, valid_BT, axis: int = 1):
  """`outputs, state = step(inputs, valid_BT, state)`, keeping the states on the way in a Trail.

  step: a pure function that leaves the state as it was where valid_BT is False. inputs and outputs:
  pytrees of arrays with the batch axis first and time at `axis`. A bare state takes one step for
  all tokens. With a Trail that keeps n tokens back, the last n tokens of each row are taken one by
  one, and those before them at once.
  """
  if not isinstance(state, Trail):
    return step(inputs, valid_BT, state)
  (B, T), now, length_B = valid_BT.shape, latest(state), state.length_B
  back = jax.tree.leaves(state.states)[0].shape[1] - 1
  row_B1, count_B = jnp.arange(B)[:, None], jnp.sum(valid_BT, axis=1, dtype=jnp.int32)
  kept, early = state, None
  first_B = jnp.zeros(B, jnp.int32)
  if T > back:
    first_B = jnp.maximum(count_B - back, 0)
    early_BT = valid_BT & (jnp.cumsum(valid_BT, axis=1) <= first_B[:, None])
    early, now = step(inputs, early_BT, now)
    kept = _put(kept, now, length_B + first_B)
  rank_BT = first_B[:, None] + jnp.arange(min(T, back), dtype=jnp.int32)[None]
  late_BT = rank_BT < count_B[:, None]
  column_BT = jnp.argsort(~valid_BT, axis=1, stable=True)  # of the valid tokens, in order
  column_BT = jnp.take_along_axis(column_BT, jnp.minimum(rank_BT, T - 1), axis=1)

  def columns(x):
    return jnp.moveaxis(jnp.moveaxis(x, axis, 1)[row_B1, column_BT], 1, 0)

  def one(carry, piece):
    kept, now = carry
    x, valid_B = piece
    y, now = step(jax.tree.map(lambda v: jnp.expand_dims(v, axis), x), valid_B[:, None], now)
    kept = _put(kept, now, kept.length_B + valid_B)
    return (kept, now), jax.tree.map(lambda v: jnp.squeeze(v, axis), y)

  (kept, _), late = jax.lax.scan(one, (kept, now), (jax.tree.map(columns, inputs), late_BT.T))

  def place(y, whole_BT):  # y: (tokens, B, ...)
    at_BT = jnp.where(late_BT, column_BT, T)  # T lies outside and is dropped
    whole_BT = whole_BT.at[row_B1, at_BT].set(jnp.moveaxis(y, 0, 1), mode="drop")
    return jnp.moveaxis(whole_BT, 1, axis)

  if early is None:
    return jax.tree.map(lambda y: place(y, jnp.zeros((B, T, *y.shape[2:]), y.dtype)), late), kept
  return jax.tree.map(lambda x, y: place(y, jnp.moveaxis(x, axis, 1)), early, late), kept


def last_valid(x_BT_, valid_BT, state):
  """The state that is x at the last valid token of each row; the old one in a row without any.

  Of a bare state, valid tokens come first: padding is on the right.
  x_BT_: (B, T, ...), what the state is after each token. state: bare, (B, ...), or a Trail.
  """
  if not isinstance(state, Trail):
    count_B = jnp.sum(valid_BT, axis=1)
    x_B_ = jax.vmap(lambda x, n: x[n])(x_BT_, jnp.maximum(count_B - 1, 0))
    return jnp.where(
      (count_B > 0).reshape((-1,) + (1,) * (x_B_.ndim - 1)), x_B_.astype(state.dtype), state
    )
  R, rank_BT = state.states.shape[1], jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32)
  count_B1 = rank_BT[:, -1:]
  there_BT = valid_BT & (rank_BT > count_B1 - R)  # of two tokens for one slot the later one
  slot_BT = jnp.where(there_BT, (state.length_B[:, None] + rank_BT) % R, R)
  row_B1 = jnp.arange(valid_BT.shape[0])[:, None]
  states = state.states.at[row_B1, slot_BT].set(x_BT_.astype(state.states.dtype), mode="drop")
  return Trail(states, state.length_B + count_B1[:, 0])


def _put(kept: Trail, now, length_B) -> Trail:
  """The Trail with `now` as the state after length_B tokens."""
  R = jax.tree.leaves(kept.states)[0].shape[1]
  row_B = jnp.arange(length_B.shape[0])
  return Trail(
    jax.tree.map(lambda old, x: old.at[row_B, length_B % R].set(x), kept.states, now), length_B
  )


def rewind(state, length_B):
  """The states of layers when each row had length_B tokens; a row that is shorter stays as it is.

  state: a pytree of KVCache, Trail, Past and whatever else has a method `rewound`, with any axes in
  front (a stack's layers). length_B: int32, not less than the row's longest length so far minus
  what its state was begun with as `rewindable`. ConfigError: a state that was begun without.
  """

  def one(part):
    if hasattr(part, "rewound"):
      return part.rewound(length_B)
    raise ConfigError(CANNOT)

  return jax.tree.map(one, state, is_leaf=lambda part: hasattr(part, "rewound"))


def keep(state, base_B, path_BK, count_B):
  """The states of layers when row b holds its first base tokens and then, of those behind, the ones
  numbered path[0] < path[1] < ..., count of them.

  state: a pytree of KVCache and of nothing else that says something, for a recurrence has no state
  of a branch. path_BK: int32, numbers from 0; what lies behind count is not read. ConfigError:
  another state.
  """

  def one(part):
    if hasattr(part, "kept"):
      return part.kept(base_B, path_BK, count_B)
    raise ConfigError(
      "the state of a recurrence cannot keep a branch of a tree: only attention can"
    )

  return jax.tree.map(one, state, is_leaf=lambda part: hasattr(part, "kept"))
