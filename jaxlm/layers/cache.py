"""The key-value cache of attention.

Axes: B batch, T new tokens, S slots, K kv heads, H head_dim.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.layers.positions import Heads
from jaxlm.layers.rewind import rewind, trail


class KVCache(NamedTuple):
  """Decoding state: key m of a row lies in slot m mod S, already rotated. index_BS: int32, m, or -1
  where empty. position: the decoding state of the position encoding.
  """

  k_BSKH: jax.Array
  v_BSKH: jax.Array
  index_BS: jax.Array
  key_info: Any
  position: Any

  def rewound(self, length_B) -> "KVCache":
    until_B = jnp.broadcast_to(length_B, self.index_BS.shape[:-1])
    index_BS = jnp.where(self.index_BS >= until_B[..., None], -1, self.index_BS)
    return self._replace(index_BS=index_BS, position=rewind(self.position, length_B))

  def kept(self, base_B, path_BK, count_B) -> "KVCache":
    """The keys of index base + path[k] as those of index base + k, k < count; all behind emptied."""
    if self.index_BS.ndim > 2:  # layers in front
      return jax.vmap(lambda cache: cache.kept(base_B, path_BK, count_B))(self)
    S, row_B1 = self.index_BS.shape[1], jnp.arange(self.index_BS.shape[0])[:, None]
    number_1K = jnp.arange(path_BK.shape[1])[None]
    is_kept_BK = number_1K < count_B[:, None]
    from_BK = (base_B[:, None] + path_BK) % S
    new_BK = base_B[:, None] + number_1K
    to_BK = jnp.where(is_kept_BK, new_BK % S, S)  # S lies outside and is dropped

    def move(x):
      return x.at[row_B1, to_BK].set(x[row_B1, from_BK], mode="drop")

    k, v, info = jax.tree.map(move, (self.k_BSKH, self.v_BSKH, self.key_info))
    index_BS = self.index_BS.at[row_B1, to_BK].set(new_BK, mode="drop")
    index_BS = jnp.where(index_BS >= (base_B + count_B)[:, None], -1, index_BS)
    return self._replace(k_BSKH=k, v_BSKH=v, index_BS=index_BS, key_info=info)


class Keys(NamedTuple):
  """What attention needs of a set of keys."""

  k_BSKH: jax.Array
  v_BSKH: jax.Array
  index_BS: jax.Array
  info: Any


def empty_cache(
  heads: Heads, position, window: int | None, batch_size: int, max_len: int, dtype, rewindable: int
) -> KVCache:
  """The cache before the first token, for at most max_len tokens of a row.

  window: of the attention, None = all. With a window the cache is a ring of window + rewindable
  slots: a row can go back by `rewindable` tokens and still finds the keys of its whole window. A
  position encoding that needs its keys in order has all max_len slots.
  """
  ring = window is not None and not position.ordered_keys
  num_keys = min(window + rewindable, max_len) if ring else max_len
  empty = jnp.zeros((batch_size, num_keys, heads.num_kv_heads, heads.head_dim), dtype)
  return KVCache(
    empty,
    empty,
    jnp.full((batch_size, num_keys), -1, jnp.int32),
    position.init_key_info(heads, batch_size, num_keys),
    trail(position.init_state(heads, batch_size), rewindable),
  )


def write(cache: KVCache, new: Keys) -> Keys:
  """The cache with the new keys in slots index mod S; index -1 is not written. With more new keys
  than slots the last ones win.
  """
  S = cache.k_BSKH.shape[1]
  newest_B1 = jnp.max(new.index_BS, axis=1, keepdims=True)
  kept_BT = (new.index_BS >= 0) & (new.index_BS > newest_B1 - S)
  slot_BT = jnp.where(kept_BT, new.index_BS % S, S)  # S lies outside and is dropped
  row_B1 = jnp.arange(slot_BT.shape[0])[:, None]

  def put(old, values):
    return old.at[row_B1, slot_BT].set(values.astype(old.dtype), mode="drop")

  return jax.tree.map(put, Keys(cache.k_BSKH, cache.v_BSKH, cache.index_BS, cache.key_info), new)


def written_and_seen(cache: KVCache, new: Keys, window: int | None, position) -> tuple[Keys, Keys]:
  """(the cache with the new keys, the keys that the new queries look at).

  They differ where a ring would forget keys that the first of several queries still see: then the
  queries look at old and new keys side by side.
  """
  written, T, S = write(cache, new), new.index_BS.shape[1], cache.k_BSKH.shape[1]
  if window is None or position.ordered_keys or S < window or T - 1 <= S - window:
    return written, written
  old = Keys(cache.k_BSKH, cache.v_BSKH, cache.index_BS, cache.key_info)
  return written, jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], 1), old, new)
