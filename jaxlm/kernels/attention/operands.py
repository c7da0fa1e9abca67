"""Biases, hidden keys and segments as the small arrays that attention kernels read.

Axes: B batch, N query heads (1: one for all), T queries, S keys, P pairs of numbers.
"""

import jax.numpy as jnp

from jaxlm.kernels.attention.bias import KeyBias
from jaxlm.kernels.attention.reference import MASKED, MaskInputs

NO_SEGMENT = jnp.iinfo(jnp.int32).min  # of keys that are padding: no query has it


def pad(x, length: int, axis: int, value=0):
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, length - x.shape[axis])
  return jnp.pad(x, widths, constant_values=value) if widths[axis][1] else x


def numbers(biases: tuple, mask_inputs: MaskInputs, S: int, padded: int):
  """(row_BNPS, column_BNPT), either None: what is subtracted per key and added per query, of
  KeyBias and hidden keys.
  """

  def per_key(x_BSN):
    return x_BSN.astype(jnp.float32).swapaxes(1, 2)

  rows = [per_key(b.k_BSN) for b in biases if isinstance(b, KeyBias) and b.q_BTN is None]
  rows = [sum(rows[1:], rows[0])] if rows else []  # nothing to subtract them from: one sum
  pairs = [b for b in biases if isinstance(b, KeyBias) and b.q_BTN is not None]
  hidden = None
  if mask_inputs.kv_segment_ids_BS is not None and mask_inputs.q_segment_ids_BT is None:
    hidden = mask_inputs.kv_segment_ids_BS == 0
  if mask_inputs.kv_segment_ids_BS is None and padded > S:
    hidden = jnp.zeros((1, S), bool)
  if hidden is not None:
    hidden_B1S = pad(hidden, padded, 1, True)[:, None]
    rows = [jnp.where(hidden_B1S, -MASKED, pad(rows[0], padded, 2) if rows else 0.0)]
  rows = [pad(row, padded, 2) for row in rows]
  columns = [per_key(b.q_BTN) for b in pairs]
  rows += [pad(per_key(b.k_BSN), padded, 2) for b in pairs]
  if pairs and len(rows) > len(pairs):
    columns = [jnp.zeros_like(columns[0]), *columns]

  def stack(parts):
    return jnp.stack(jnp.broadcast_arrays(*parts), axis=2) if parts else None

  return stack(rows), stack(columns)


def segments(mask_inputs: MaskInputs, B: int, T: int, S: int):
  """(int32 (B, T) of the queries, (B, S) of the keys), padded to T and S, those of keys never 0; or
  two None.
  """
  if mask_inputs.q_segment_ids_BT is None:
    return None, None
  keys = mask_inputs.kv_segment_ids_BS
  keys = pad(jnp.where(keys == 0, NO_SEGMENT, keys), S, 1, NO_SEGMENT)
  return jnp.broadcast_to(pad(mask_inputs.q_segment_ids_BT, T, 1), (B, T)), jnp.broadcast_to(
    keys, (B, S)
  )
