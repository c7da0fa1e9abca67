"""Cutting a sequence into chunks, and sums between two tokens. Shared by the linear recurrences.

Axes: B batch, T time, N heads, C chunks (leading).
"""

import jax
import jax.numpy as jnp


def segsum(a):
  """[..., i, j] = sum of a over j + 1 .. i, -inf for j > i.

  Added up from j, so that nothing cancels.
  """
  size = a.shape[-1]
  below = jnp.tril(jnp.ones((size, size), bool), -1)
  repeated = jnp.where(below, a[..., :, None], 0)  # [i, j] = a_i for i > j
  return jnp.where(jnp.tril(jnp.ones((size, size), bool)), jnp.cumsum(repeated, -2), -jnp.inf)


def by_chunk(arrays, ids_BT, chunk):
  """(B, T, N, ...) -> (C, B, N, chunk, ...) of float32 or better, padded with tokens that change no
  state.
  """
  T = ids_BT.shape[1]
  pad = -T % chunk

  def cut(x):
    x = jnp.pad(
      x.astype(jnp.promote_types(x.dtype, jnp.float32)),
      ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2),
    )
    x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
    return jnp.moveaxis(x, (1, 3), (0, 2))

  ids = jnp.pad(ids_BT, ((0, 0), (0, pad)), mode="edge")
  return jax.tree.map(cut, arrays), jnp.moveaxis(ids.reshape(ids.shape[0], -1, chunk), 1, 0)


def whole(o_CBNTE, length):
  """(C, B, N, chunk, E) -> (B, length, N, E)."""
  o = jnp.moveaxis(o_CBNTE, (0, 2), (1, 3))
  return o.reshape(o.shape[0], -1, *o.shape[3:])[:, :length]
