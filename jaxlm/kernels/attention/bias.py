"""Additive terms of the attention scores, computed from positions block by block and never stored.

Axes: B batch, N query heads, T queries, S keys, H head_dim, P CoPE positions, R distances.

A bias is a frozen dataclass and a pytree, so its parameters receive gradients. Its methods:

  add(s_BNTS, block) -> s_BNTS with the bias added; `block` says what the scores are of
  cut(q_start, q_size, k_start, k_size), pad_queries(length): the same bias for other queries and
  keys by_distance(relative_R) -> its values where it depends on j - i alone, for kernels that build
  a tile from a line
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Block(NamedTuple):
  """What a block of scores is of. i, j: int32 indices of queries and keys, leading axis B or 1."""

  q_BNTH: jax.Array
  i_BT: jax.Array
  j_BS: jax.Array
  seen_BNTS: jax.Array  # bool, broadcastable to the scores: pairs that may attend
  contiguous: bool  # i and j count up by one and are the same for all rows


def pytree(*, data, meta=()):
  """Frozen dataclass registered as a pytree with array fields `data` and static fields `meta`."""

  def wrap(cls):
    cls = dataclasses.dataclass(frozen=True)(cls)
    return jax.tree_util.register_dataclass(cls, data_fields=list(data), meta_fields=list(meta))

  return wrap


class Bias:
  """Base: a bias that depends on positions only and needs no cutting."""

  def cut(self, q_start, q_size, k_start, k_size):
    return self

  def pad_queries(self, length):
    return self

  def by_distance(self, relative_R):
    """(num_heads, R) float32 at the distances j - i, or None if the bias depends on more than the
    distance.
    """
    return None


def _slice(x, start, size):
  return None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


@pytree(data=["slope_N"])
class LinearBias(Bias):
  """b = -slope_n (i - j): ALiBi (docs/specs/carope.md section 7). slope_N: (num_heads,) float."""

  slope_N: jax.Array

  def by_distance(self, relative_R):
    return self.slope_N.astype(jnp.float32)[:, None] * relative_R.astype(jnp.float32)[None]

  def add(self, s_BNTS, block):
    distance = (block.i_BT[:, None, :, None] - block.j_BS[:, None, None, :]).astype(jnp.float32)
    return s_BNTS - self.slope_N.astype(jnp.float32)[None, :, None, None] * distance


@pytree(data=["q_BTN", "k_BSN"])
class KeyBias(Bias):
  """b = q_i - k_j, one number per token and query head: CABLE with its running sums as q and k.

  q_BTN: (B, T, N) or None, which counts as zero (softmax without softmax1 does not see it);
  k_BSN: (B, S, N). N may be 1: the same bias for all heads.
  """

  q_BTN: jax.Array | None
  k_BSN: jax.Array

  def cut(self, q_start, q_size, k_start, k_size):
    return KeyBias(_slice(self.q_BTN, q_start, q_size), _slice(self.k_BSN, k_start, k_size))

  def pad_queries(self, length):
    if self.q_BTN is None:
      return self
    return KeyBias(
      jnp.pad(self.q_BTN, ((0, 0), (0, length - self.q_BTN.shape[1]), (0, 0))), self.k_BSN
    )

  def add(self, s_BNTS, block):
    bias_BNTS = -self.k_BSN.astype(jnp.float32).swapaxes(1, 2)[:, :, None, :]
    if (
      self.q_BTN is not None
    ):  # before the score is added: q and k may be large and their difference small
      bias_BNTS = bias_BNTS + self.q_BTN.astype(jnp.float32).swapaxes(1, 2)[:, :, :, None]
    return s_BNTS + bias_BNTS


def relative_bucket(relative_position, *, num_buckets=32, max_distance=128, bidirectional=True):
  """T5's bucket of r = key position - query position, int32, any shape.

  With n buckets left for one direction and a = |r| (causal: max(-r, 0)): a if a < n/2, else
  min(n - 1, n/2 + trunc(log(a / (n/2)) / log(max_distance / (n/2)) * (n - n/2))). Bidirectional: n
  = num_buckets / 2, and keys to the right use the second half. Float32 in this order of operations,
  as values on bucket edges flip otherwise (docs/specs/mrt5.md).
  """
  n, offset = num_buckets, jnp.zeros_like(relative_position)
  if bidirectional:
    n //= 2
    offset = jnp.where(relative_position > 0, n, 0).astype(relative_position.dtype)
    distance = jnp.abs(relative_position)
  else:
    distance = jnp.maximum(-relative_position, 0)
  exact = n // 2
  ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
  far = exact + (ratio / math.log(max_distance / exact) * (n - exact)).astype(distance.dtype)
  return offset + jnp.where(distance < exact, distance, jnp.minimum(far, n - 1))


@pytree(data=["table"], meta=["bidirectional", "max_distance"])
class BucketBias(Bias):
  """b = table[relative_bucket(j - i), n]: T5. table: (num_buckets, num_heads) float."""

  table: jax.Array
  bidirectional: bool = True
  max_distance: int = 128

  def _look_up(self, relative_position):
    bucket = relative_bucket(
      relative_position,
      num_buckets=self.table.shape[0],
      max_distance=self.max_distance,
      bidirectional=self.bidirectional,
    )
    if bucket.ndim > 1:  # zeros and ones would take num_buckets times the scores' memory
      return self.table.astype(jnp.float32)[bucket]
    # A product with zeros and ones: exact, and its gradient is no scatter, which a TPU does one
    # element at a time.
    return jnp.matmul(
      jax.nn.one_hot(bucket, self.table.shape[0], dtype=jnp.float32),
      self.table.astype(jnp.float32),
      precision=jax.lax.Precision.HIGHEST,
    )

  def by_distance(self, relative_R):
    return self._look_up(relative_R).T

  def add(self, s_BNTS, block):
    T, S = s_BNTS.shape[2:]
    if not block.contiguous:
      # From max_distance on the bucket stays the same: one gather from a line, no logarithm per
      # pair.
      most = self.max_distance
      line_RN = self._look_up(jnp.arange(-most, most + 1, dtype=jnp.int32))
      relative_BTS = jnp.clip(block.j_BS[:, None, :] - block.i_BT[:, :, None], -most, most) + most
      return s_BNTS + jnp.moveaxis(line_RN[relative_BTS], -1, 1)
    # Only T + S - 1 distances occur: look those up and skew them into (T, S), so that neither the
    # values nor their gradient go through a gather or scatter of T * S elements.
    first = block.j_BS[0, 0] - block.i_BT[0, 0] - (T - 1)
    line_NR = self.by_distance(first + jnp.arange(T + S - 1, dtype=jnp.int32))
    return s_BNTS + skew(line_NR, T, S)[None]


def skew(line_NR, T, S):
  """out[n, t, s] = line[n, T - 1 - t + s], R = T + S - 1, by broadcasting, slicing and reshaping
  only.
  """
  N, R = line_NR.shape
  if T == 1:
    return line_NR[:, None]
  # A line repeated with period R and read with period R - 1 moves one to the right per row.
  flat = jnp.broadcast_to(line_NR[:, None], (N, T, R)).reshape(N, T * R)
  return flat[:, T - 1 : T - 1 + T * (R - 1)].reshape(N, T, R - 1)[:, :, :S]


@pytree(data=["table_HP"])
class CoPE(Bias):
  """Contextual position encoding (arXiv 2405.18719; docs/specs/carope.md section 7).

  g_ij = sigmoid(s_ij), p_ij = min(sum_{l=j..i} g_il, P - 1), b_ij = (q_i E)[p_ij], interpolated
  between floor(p) and ceil(p). s: scaled logits. table_HP: E, (head_dim, P) shared by heads. Keys
  must be in order. Each query needs all its keys at once, so this bias works by blocks of queries.
  """

  table_HP: jax.Array

  def add(self, s_BNTS, block):
    P = self.table_HP.shape[1]
    gate_BNTS = jnp.where(block.seen_BNTS, jax.nn.sigmoid(s_BNTS), 0.0)
    position_BNTS = jnp.minimum(jax.lax.cumsum(gate_BNTS, axis=3, reverse=True), P - 1)
    z_BNTP = jnp.einsum(
      "bnth,hp->bntp", block.q_BNTH.astype(jnp.float32), self.table_HP.astype(jnp.float32)
    )
    floor_BNTS = jnp.floor(position_BNTS)
    low = floor_BNTS.astype(jnp.int32)
    take = functools.partial(jnp.take_along_axis, z_BNTP, axis=3)
    low_BNTS, high_BNTS = take(low), take(jnp.minimum(low + 1, P - 1))
    return s_BNTS + low_BNTS + (high_BNTS - low_BNTS) * (position_BNTS - floor_BNTS)
