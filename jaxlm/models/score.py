"""What a language model says about given targets. Axes: B batch, T time."""

from typing import NamedTuple

import jax


class Score(NamedTuple):
  """log p(target) and the log of the softmax's denominator, float32 (B, T)."""

  log_prob_BT: jax.Array
  log_z_BT: jax.Array
