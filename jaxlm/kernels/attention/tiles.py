"""The static grid of the Pallas kernel: which tiles of scores are computed, which need a mask, and
what they cost.

A tile holds the scores of `block_k` keys (rows) and `block_q` queries (columns). Lengths are padded
to whole tiles.
"""

import dataclasses

import jax.numpy as jnp

from jaxlm.kernels.attention.reference import AttentionSpec


@dataclasses.dataclass(frozen=True)
class Tiles:
  """T, S: padded lengths, multiples of the block sizes, which are multiples of 128.

  Every method takes tile numbers as Python or traced integers.
  """

  T: int
  S: int
  block_q: int
  block_k: int
  causal: bool
  window: int | None

  @property
  def num_q(self) -> int:
    return self.T // self.block_q

  @property
  def num_k(self) -> int:
    return self.S // self.block_k

  @property
  def positional(self) -> bool:
    """Whether positions alone hide some pairs."""
    return self.causal or self.window is not None

  def distance(self, q, k):
    """i - j of the first query and the first key of a tile."""
    return q * self.block_q - k * self.block_k

  def is_live(self, q, k):
    """Whether some pair of the tile may attend. Always True where positions hide nothing."""
    d, live = self.distance(q, k), True
    if self.causal:
      live = d + self.block_q - 1 >= 0
    if self.window is not None:
      live &= d - (self.block_k - 1) < self.window
      if not self.causal:
        live &= d + self.block_q - 1 > -self.window
    return live

  def is_whole(self, q, k):
    """Whether positions hide no pair of the tile."""
    d, whole = self.distance(q, k), True
    if self.causal:
      whole = d - (self.block_k - 1) >= 0
    if self.window is not None:
      whole &= d + self.block_q - 1 < self.window
      if not self.causal:
        whole &= d - (self.block_k - 1) > -self.window
    return whole

  def keys_of(self, q, k):
    """Tile k, or the nearest that is live for queries q: so that no block is fetched for a dead
    tile.
    """
    last, first = self.num_k - 1, 0
    if self.causal:
      last = jnp.minimum(last, (q * self.block_q + self.block_q - 1) // self.block_k)
    if self.window is not None:
      first = jnp.maximum(q * self.block_q - self.window + 1, 0) // self.block_k
      if not self.causal:
        last = jnp.minimum(
          last, (q * self.block_q + self.block_q - 2 + self.window) // self.block_k
        )
    return jnp.clip(k, jnp.minimum(first, last), last) if self.positional else k

  def queries_of(self, q, k):
    """Tile q, or the nearest that is live for keys k."""
    last, first = self.num_q - 1, 0
    if self.causal:
      first = (k * self.block_k) // self.block_q
    if self.window is not None:
      last = jnp.minimum(last, (k * self.block_k + self.block_k - 2 + self.window) // self.block_q)
      if not self.causal:
        first = jnp.maximum(k * self.block_k - self.window + 1, 0) // self.block_q
    return jnp.clip(q, jnp.minimum(first, last), last) if self.positional else q

  @property
  def distances(self) -> tuple[int, int]:
    """Least and largest `distance` of the live tiles."""
    live = [
      self.distance(q, k)
      for q in range(self.num_q)
      for k in range(self.num_k)
      if self.is_live(q, k)
    ]
    return min(live), max(live)

  @property
  def strip_width(self) -> int:
    """Columns of the strip that holds a bias of distance for every live tile, and room to skew it."""
    low, high = self.distances
    return high - low + self.block_q + self.block_k

  def vmem_bytes(self, H: int, F: int, itemsize: int, strip: bool, backward: bool) -> int:
    """What one grid step holds, about: blocks twice, scratch once, some temporaries of a tile's
    size.
    """
    tile = self.block_q * self.block_k * 4
    blocks = 2 * itemsize * (H + F) * (self.block_q + self.block_k)
    if not backward:
      return 5 * tile + blocks + 4 * F * self.block_q + strip * self._strip_bytes()
    whole = self.T * H * (4 + 2 * itemsize)
    return (
      7 * tile + 2 * blocks + 4 * (H + F) * self.block_k + whole + 2 * strip * self._strip_bytes()
    )

  def _strip_bytes(self) -> int:
    return self.strip_width * (self.block_k + 16) * 4


def tiles(T: int, S: int, block_q: int, block_k: int, rule: AttentionSpec) -> Tiles:
  """The grid for T queries and S keys, before padding."""

  def up(length, block):
    return -(-length // block) * block

  return Tiles(up(T, block_q), up(S, block_k), block_q, block_k, rule.causal, rule.window)
