"""The decoding state of an H-Net, nested like its stages, and how it goes back.

Axes: B batch, D d_model.
"""

from typing import Any, NamedTuple

import jax

from jaxlm.layers.rewind import Reach, latest, rewind


class HNetState(NamedTuple):
  """length_B: bytes seen. stage: StageState, nested; the innermost is an IsotropicState. reach: how
  far the rows can go back.
  """

  length_B: jax.Array
  stage: Any
  reach: Reach = Reach()


class StageState(NamedTuple):
  """seen_B: has the row had a token? count_B: chunks so far, the inner stage's length. last_BD:
  last zb, float32.
  """

  encoder: Any
  router: Any
  seen_B: jax.Array
  count_B: jax.Array
  inner: Any
  last_BD: jax.Array
  decoder: Any


def rewind_stage(state, length_B):
  """A stage's state when its rows had length_B positions; the inner stage then had as many chunks
  as this one had started.
  """
  if not isinstance(state, StageState):
    return rewind(state, length_B)
  count = rewind(state.count_B, length_B)
  count_B = latest(count)
  return StageState(
    rewind(state.encoder, length_B),
    rewind(state.router, length_B),
    count_B > 0,  # a row's first position starts a chunk
    count,
    rewind_stage(state.inner, count_B),
    rewind(state.last_BD, length_B),
    rewind(state.decoder, length_B),
  )
