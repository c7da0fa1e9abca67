"""Attention masks with a structure, computed from indices block by block and never stored.

Axes: B batch, T queries, S keys, W words of 32 bits, R ranges.

A structure is a pytree of labels of the queries; keys are known by their index j alone, so that a
key-value cache stores nothing for it. Its methods:

  seen(i_B1T1, j_B11S) -> bool, broadcastable to (B, 1, T, S), in addition to causality, window and
  segments
  cut(start, size), pad_queries(length): the same structure for a block of the queries
"""

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention.bias import pytree

WORD = 32


def _cut(x, start, size):
  return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _pad(x, length):
  return jnp.pad(x, ((0, 0), (0, length - x.shape[1])) + ((0, 0),) * (x.ndim - 2))


@pytree(data=["base_B", "ancestors_BTW"])
class TreeMask:
  """A node of a tree sees what comes before the tree, its ancestors and itself.

  base_B: int32, index of node 0 of each row; node n has index base + n. ancestors_BTW: uint32, bit
  n mod 32 of word n div 32 says whether node n is an ancestor of the query's node, or that node.
  """

  base_B: jax.Array
  ancestors_BTW: jax.Array

  def seen(self, i, j):
    node = j - self.base_B[:, None, None, None]
    seen = node < 0
    for w in range(self.ancestors_BTW.shape[2]):
      inside = (node >= w * WORD) & (node < (w + 1) * WORD)
      bit = jnp.clip(node - w * WORD, 0, WORD - 1).astype(jnp.uint32)
      seen |= inside & ((self.ancestors_BTW[:, None, :, w, None] >> bit) & 1 == 1)
    return seen

  def cut(self, start, size):
    return TreeMask(self.base_B, _cut(self.ancestors_BTW, start, size))

  def pad_queries(self, length):
    return TreeMask(self.base_B, _pad(self.ancestors_BTW, length))


@pytree(data=["hidden_BTR2"])
class SetMask:
  """A query does not see keys whose index lies in one of its R hidden ranges [from, until).

  hidden_BTR2: int32. Of set-based prompting: the earlier members of every set that holds the query.
  An empty range, from = until, hides nothing.
  """

  hidden_BTR2: jax.Array

  def seen(self, i, j):
    seen = True
    for r in range(self.hidden_BTR2.shape[2]):
      low, high = (self.hidden_BTR2[:, None, :, r, end, None] for end in (0, 1))
      seen &= (j < low) | (j >= high)
    return seen

  def cut(self, start, size):
    return SetMask(_cut(self.hidden_BTR2, start, size))

  def pad_queries(self, length):
    return SetMask(_pad(self.hidden_BTR2, length))


@pytree(data=["block_len_B", "row_len_B"])
class BlockDiffusionMask:
  """Of a row's noisy copy followed by its clean one, 2 T tokens, with blocks of block_len tokens.

  noisy sees noisy   of the same block
  noisy sees clean   of earlier blocks
  clean sees clean   of the same and earlier blocks
  clean sees noisy   never

  block_len_B, row_len_B: int32; row_len is T. Arriola et al., "Block Diffusion", arXiv 2503.09573,
  section 3.2 (number from memory).
  """

  block_len_B: jax.Array
  row_len_B: jax.Array

  def seen(self, i, j):
    T, size = (x[:, None, None, None] for x in (self.row_len_B, self.block_len_B))
    noisy_i, noisy_j = i < T, j < T
    block_i, block_j = (i % T) // size, (j % T) // size
    return jnp.where(
      noisy_i,
      jnp.where(noisy_j, block_i == block_j, block_j < block_i),
      ~noisy_j & (block_j <= block_i),
    )

  def cut(self, start, size):
    return self

  def pad_queries(self, length):
    return self
