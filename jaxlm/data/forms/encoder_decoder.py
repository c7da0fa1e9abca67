"""Rows from text to text in ByT5's tokens. Axes: L encoder length, T decoder length.

docs/specs/mrt5.md, sections 1 and 8.
"""

import numpy as np

from jaxlm.data import byte_t5
from jaxlm.data.span_corruption import shift_right


def row(inputs: np.ndarray, labels: np.ndarray, *, padded: bool, counted=None) -> dict:
  """inputs: int32 (L,). labels: int32 (T,), padded with `byte_t5.IGNORED`. padded: whether inputs
  may hold padding, which belongs to no segment. counted: bool (T,), the labels that the loss counts;
  None: all but the ignored ones.
  """
  counted = labels != byte_t5.IGNORED if counted is None else counted
  inside = inputs != byte_t5.PAD if padded else np.ones_like(inputs)
  return dict(
    tokens=inputs,
    decoder_tokens=shift_right(labels),
    targets=np.maximum(labels, 0),
    segment_ids=inside.astype(np.int32),
    positions=np.arange(len(inputs), dtype=np.int32),
    loss_weights=counted.astype(np.float32),
    target_bytes=byte_t5.num_bytes(labels),
  )


def batch_fields(rows: int, length: int, target_len: int) -> dict:
  """{name: (shape, dtype)} of a batch, for those who compile without reading data."""
  inputs, outputs = (rows, length), (rows, target_len)
  return {
    "tokens": (inputs, np.int32),
    "segment_ids": (inputs, np.int32),
    "positions": (inputs, np.int32),
    "decoder_tokens": (outputs, np.int32),
    "targets": (outputs, np.int32),
    "loss_weights": (outputs, np.float32),
    "target_bytes": (outputs, np.int32),
  }
