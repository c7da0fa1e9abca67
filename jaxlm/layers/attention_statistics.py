"""What the attention weights look like, without the whole matrix: block by block of queries.

Axes: B batch, T queries, Q queries of a block, S keys, N heads, R distances.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention import Weights, attention_weights

NEAR = 4  # distances i - j whose weights are kept: 0 .. NEAR - 1


class Statistics(NamedTuple):
  """Of the weights p, float32. columns_BNS: sum_i p_ij, how much a key is looked at by all queries.
  entropy_BNT: -sum_j p_ij log p_ij, in nats. largest_BNT: max_j p_ij. squares_BNT: sum_j p_ij^2,
  whose sum over i is the square of the Frobenius norm. first_BNT: p_i0. near_BNTR: p_i(i-r), r < 4,
  0 in front of the row. spread_BT: sum_j std_n p_ij, how much the heads differ. slot_BNT: the weight
  of a key that is a parameter (similarity_attention), else 0.
  """

  columns_BNS: jax.Array
  entropy_BNT: jax.Array
  largest_BNT: jax.Array
  squares_BNT: jax.Array
  first_BNT: jax.Array
  near_BNTR: jax.Array
  spread_BT: jax.Array
  slot_BNT: jax.Array


def _of_softmax(q_BTNH, k_BSKH, **rule) -> Weights:
  p_BNTS = attention_weights(q_BTNH, k_BSKH, **rule)
  return Weights(p_BNTS, jnp.zeros(p_BNTS.shape[:3], jnp.float32))


def attention_statistics(
  q_BTNH,
  k_BSKH,
  *,
  block: int = 128,
  bias=None,
  q_index_BT=None,
  kv_index_BS=None,
  q_segment_ids_BT=None,
  kv_segment_ids_BS=None,
  weights: Callable[..., Weights] = _of_softmax,
  structure=None,
  **rule,
) -> Statistics:
  """Statistics of `weights` of the same arguments, in memory of B N block S.

  weights: (q, k, **rule) -> `Weights`, nonnegative; default those of `attention`. A query that sees
  no key has weights 0, and so no entropy and nothing largest.
  """
  (B, T, _, _), S = q_BTNH.shape, k_BSKH.shape[1]
  block = min(block, T)
  padded = -(-T // block) * block
  if kv_segment_ids_BS is None:
    kv_segment_ids_BS = (
      jnp.ones((B, S), jnp.int32) if q_segment_ids_BT is None else q_segment_ids_BT
    )
  if q_segment_ids_BT is None:
    # Keys of segment 0 are seen by nobody; of the others, all are alike to these queries.
    kv_segment_ids_BS = (kv_segment_ids_BS != 0).astype(jnp.int32)
    q_segment_ids_BT = jnp.ones((B, T), jnp.int32)

  def count(index, length):
    return jnp.arange(length, dtype=jnp.int32)[None] if index is None else index

  def pad(x, value=0):
    return jnp.pad(x, ((0, 0), (0, padded - T)) + ((0, 0),) * (x.ndim - 2), constant_values=value)

  q_BTNH, q_segments_BT = pad(q_BTNH), pad(q_segment_ids_BT, -1)  # of a segment that no key has
  i_BT, j_BS = pad(count(q_index_BT, T)), count(kv_index_BS, S)
  biases = () if bias is None else tuple(bias) if isinstance(bias, (tuple, list)) else (bias,)
  biases = tuple(b.pad_queries(padded) for b in biases)
  structure = None if structure is None else structure.pad_queries(padded)

  def step(columns_BNS, n):
    def cut(x):
      return jax.lax.dynamic_slice_in_dim(x, n * block, block, axis=1)

    p_BNQS, slot_BNQ = weights(
      cut(q_BTNH),
      k_BSKH,
      q_index_BT=cut(i_BT),
      kv_index_BS=j_BS,
      q_segment_ids_BT=cut(q_segments_BT),
      kv_segment_ids_BS=kv_segment_ids_BS,
      bias=tuple(b.cut(n * block, block, 0, S) for b in biases),
      structure=None if structure is None else structure.cut(n * block, block),
      **rule,
    )
    entropy_BNQ = -jnp.sum(jax.scipy.special.xlogy(p_BNQS, p_BNQS), axis=-1)
    entropy_BNQ -= jax.scipy.special.xlogy(slot_BNQ, slot_BNQ)
    at_QR = n * block + jnp.arange(block)[:, None] - jnp.arange(NEAR)[None]
    near_BNQR = jnp.take_along_axis(p_BNQS, jnp.clip(at_QR, 0, S - 1)[None, None], axis=-1)
    rows = (
      entropy_BNQ,
      jnp.max(p_BNQS, axis=-1),
      jnp.sum(p_BNQS * p_BNQS, axis=-1),
      p_BNQS[..., 0],
      jnp.where((at_QR >= 0) & (at_QR < S), near_BNQR, 0.0),
      jnp.sum(jnp.std(p_BNQS, axis=1), axis=-1)[:, None],
      slot_BNQ,
    )
    return columns_BNS + jnp.sum(p_BNQS, axis=2), rows

  columns_BNS, rows = jax.lax.scan(
    step, jnp.zeros((B, q_BTNH.shape[2], S), jnp.float32), jnp.arange(padded // block)
  )

  def join(x):
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(B, x.shape[1], padded, *x.shape[4:])[:, :, :T]

  *rows, spread, slot = map(join, rows)
  return Statistics(columns_BNS, *rows, spread[:, 0], slot)
