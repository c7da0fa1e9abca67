"""What a language model says about given targets. Axes: B batch, T time."""

from typing import NamedTuple

import jax

from jaxlm.layers.lexinvariant import LexinvariantConfig
from jaxlm.layers.lexinvariant import (
  lexicon_of as lexicon_of,
)  # what `score` needs of a batch besides its tokens


class Score(NamedTuple):
  """log p(target) and the log of the softmax's denominator, float32 (B, T)."""

  log_prob_BT: jax.Array
  log_z_BT: jax.Array


def lexinvariant(config) -> bool:
  """Whether a model has a random table for every sequence, so that one may average over several."""
  return isinstance(config.embedding, LexinvariantConfig)
