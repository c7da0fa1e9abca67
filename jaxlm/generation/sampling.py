"""From logits to one token: greedy, or a draw from what the logit processors leave.

Axes: B batch, V vocab.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.generation.processors import (
  PROCESSORS,
  MinP,
  Processor,
  Temperature,
  TopK,
  TopP,
  process,
)
from jaxlm.ranges import Count, NonNegative, UpToOne


@dataclasses.dataclass(frozen=True)
@checked
class Sampling:
  """How the next token is drawn: softmax of the logits after `chain`.

  temperature: logits are divided by it; 0 takes the most probable token. top_k, top_p, min_p: see
  `jaxlm.generation.processors`; they apply in this order, behind the temperature. processors:
  others, in front of all of these; with temperature 0 too.
  """

  temperature: NonNegative = 1.0
  top_k: Count | None = None
  top_p: UpToOne | None = None
  min_p: UpToOne | None = None
  processors: tuple[Annotated[object, PROCESSORS], ...] = ()

  @property
  def is_greedy(self) -> bool:
    return self.temperature == 0

  @property
  def chain(self) -> tuple[Processor, ...]:
    """The processors in the order in which they apply; () leaves the logits as they are."""
    if self.is_greedy:
      return self.processors
    asked = (
      (Temperature, None if self.temperature == 1 else self.temperature),
      (TopK, self.top_k),
      (TopP, self.top_p),
      (MinP, self.min_p),
    )
    return (*self.processors, *(cls(value) for cls, value in asked if value is not None))


PLAIN, GREEDY = Sampling(), Sampling(temperature=0)


def sample(keys_B, logits_BV, sampling: Sampling, num_new_B=None, met_BP=None):
  """One int32 token per row.

  keys_B: typed PRNG keys, one per row, so that a row's draw does not depend on the batch.
  num_new_B, met_BP: see `process`.
  """
  logits_BV = process(logits_BV, sampling.chain, num_new_B, met_BP)
  if sampling.is_greedy:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def probabilities(logits_BV, sampling: Sampling, num_new_B=None):
  """What `sample` draws from, float32 (B, V); one-hot where it is greedy. num_new_B: as there."""
  logits_BV = process(logits_BV, sampling.chain, num_new_B)
  if sampling.is_greedy:
    return jax.nn.one_hot(jnp.argmax(logits_BV, axis=-1), logits_BV.shape[-1], dtype=jnp.float32)
  return jax.nn.softmax(logits_BV, axis=-1)
