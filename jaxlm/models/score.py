"""What a language model answers. Axes: B batch, T time, V vocab."""

from typing import Any, NamedTuple

import jax

from jaxlm.layers.lexinvariant import LexinvariantConfig
from jaxlm.layers.lexinvariant import (
  lexicon_of as lexicon_of,
)  # what `score` needs of a batch besides its tokens


class Score(NamedTuple):
  """log p(target) and the log of the softmax's denominator, float32 (B, T).

  aux: what the model decided on the way: of an H-Net a StageInfo per chunking stage, of an
  encoder-decoder its `Reading`; () of the others.
  """

  log_prob_BT: jax.Array
  log_z_BT: jax.Array
  aux: Any = ()


class Outputs(NamedTuple):
  """What `run` returns: float32 logits (B, T, V), what the model decided on the way (see Score),
  and the decoding state after the tokens, None of a pass without one.
  """

  logits_BTV: jax.Array
  aux: Any = ()
  state: Any = None


def lexinvariant(config) -> bool:
  """Whether a model has a random table for every sequence, so that one may average over several."""
  return isinstance(config.embedding, LexinvariantConfig)
