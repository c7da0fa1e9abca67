"""The definition of compaction: a stable sort that brings kept positions to the front."""

import jax.numpy as jnp


def compact(keep_BT, capacity):
  length = keep_BT.shape[1]
  count_B = jnp.sum(keep_BT, axis=1, dtype=jnp.int32)
  order_BT = jnp.argsort(~keep_BT, axis=1, stable=True).astype(jnp.int32)
  order_BC = jnp.pad(order_BT, ((0, 0), (0, max(0, capacity - length))))[:, :capacity]
  valid_BC = jnp.arange(capacity)[None] < count_B[:, None]
  cumulative_BT = jnp.cumsum(keep_BT, axis=1, dtype=jnp.int32)
  rank_BT = jnp.minimum(cumulative_BT - 1, capacity - 1)
  kept_BT = keep_BT & (cumulative_BT <= capacity)
  return jnp.where(valid_BC, order_BC, 0), valid_BC, rank_BT, kept_BT, count_B, count_B > capacity


def gather(x_BT_, source_BC, valid_BC):
  rows = jnp.arange(x_BT_.shape[0])[:, None]
  return jnp.where(_expand(valid_BC, x_BT_), x_BT_[rows, source_BC], 0)


def scatter(y_BC_, source_BC, valid_BC, length):
  rows = jnp.arange(y_BC_.shape[0])[:, None]
  x_BT_ = jnp.zeros((y_BC_.shape[0], length, *y_BC_.shape[2:]), y_BC_.dtype)
  return x_BT_.at[rows, source_BC].add(jnp.where(_expand(valid_BC, y_BC_), y_BC_, 0))


def upsample(y_BC_, rank_BT):
  rows = jnp.arange(y_BC_.shape[0])[:, None]
  return jnp.where(_expand(rank_BT >= 0, y_BC_), y_BC_[rows, jnp.maximum(rank_BT, 0)], 0)


def _expand(mask, like):
  return mask.reshape(mask.shape + (1,) * (like.ndim - 2))
