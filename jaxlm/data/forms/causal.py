"""Rows for models from left to right: question BOS answer EOS, of which the answer is scored.

Axes: T position.
"""

import numpy as np

from jaxlm.data.forms.layout import GIVEN, TARGET, Layout


class Causal(Layout):
  """Fields: tokens, targets, segment_ids, positions, loss_weights, target_bytes, each (T,)."""

  ends_with_eos = True

  def row(self, tokens, types, *, seq_len, pad, num_bytes=None, pad_left=False):
    T, n = seq_len, len(tokens)
    short = T + 1 - n

    def wide(x, value):
      return np.pad(x, (short, 0) if pad_left else (0, short), constant_values=value)

    num_bytes = None if num_bytes is None else wide(np.asarray(num_bytes), 0)
    tokens, types, inside = wide(tokens, pad), wide(types, GIVEN), wide(np.ones(n, np.int32), 0)
    # A padded place in front stands at position 0, one behind at the last token's: nothing looks at
    # either.
    positions = np.maximum(np.cumsum(inside)[:-1] - 1, 0)
    counted = (types[1:] == TARGET) & (inside[1:] > 0)
    return dict(
      tokens=tokens[:-1].astype(np.int32),
      targets=tokens[1:].astype(np.int32),
      segment_ids=inside[:-1].astype(np.int32),
      positions=positions.astype(np.int32),
      loss_weights=counted.astype(np.float32),
      target_bytes=np.zeros(T, np.int32)
      if num_bytes is None
      else (num_bytes[1:] * counted).astype(np.int32),
    )
