"""Rows for masked diffusion: question BOS answer, and padding that is predicted too.

Axes: T position. docs/specs/ilm.md, section 6.2.
"""

import numpy as np

from jaxlm.data.forms.layout import TARGET, Layout, filled


class Masked(Layout):
  """Fields: tokens, segment_ids, positions, maskable (T,); loss_weights, target_bytes (1,)."""

  def row(self, tokens, types, *, seq_len, pad, num_bytes=None, pad_left=False):
    return dict(
      tokens=filled(tokens, seq_len, pad),
      segment_ids=filled(np.ones(len(tokens)), seq_len, 0),
      positions=np.arange(seq_len, dtype=np.int32),
      maskable=filled(types == TARGET, seq_len, 1),
      loss_weights=np.ones(1, np.float32),
      target_bytes=np.ones(1, np.int32),
    )
