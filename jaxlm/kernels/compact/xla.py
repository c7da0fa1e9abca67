"""Compaction without a sort: one cumulative sum and one scatter of indices; rows move by gathers."""

import jax
import jax.numpy as jnp


def compact(keep_BT, capacity):
  length = keep_BT.shape[1]
  cumulative_BT = jnp.cumsum(keep_BT, axis=1, dtype=jnp.int32)
  count_B = cumulative_BT[:, -1]
  kept_BT = keep_BT & (cumulative_BT <= capacity)
  # Dropped positions aim past the end, each at its own place, so that the indices are unique as
  # promised.
  slot_BT = jnp.where(kept_BT, cumulative_BT - 1, capacity + jnp.arange(length)[None])

  def place(slot_T):
    return (
      jnp.zeros(capacity, jnp.int32)
      .at[slot_T]
      .set(jnp.arange(length, dtype=jnp.int32), mode="drop", unique_indices=True)
    )

  source_BC = jax.vmap(place)(slot_BT)
  valid_BC = jnp.arange(capacity)[None] < count_B[:, None]
  rank_BT = jnp.minimum(cumulative_BT - 1, capacity - 1)
  return source_BC, valid_BC, rank_BT, kept_BT, count_B, count_B > capacity


def gather(x_BT_, index_BC, where_BC):
  """x[index] where asked, else 0. Indices are in range by construction."""
  take = jax.vmap(lambda x, i: x.at[i].get(mode="promise_in_bounds"))
  return jnp.where(
    where_BC.reshape(where_BC.shape + (1,) * (x_BT_.ndim - 2)), take(x_BT_, index_BC), 0
  )


def segment_sum(g_BT_, rank_BT, capacity):
  """sum of g over the positions of equal rank; rank -1 is dropped.

  Ranks do not decrease along T.
  """

  # One leading slot for rank -1 keeps the indices sorted.
  def add(g, i):
    return (
      jnp.zeros((capacity + 1, *g.shape[1:]), jnp.float32)
      .at[i]
      .add(g.astype(jnp.float32), indices_are_sorted=True, mode="promise_in_bounds")
    )

  return jax.vmap(add)(g_BT_, rank_BT + 1)[:, 1:].astype(g_BT_.dtype)
