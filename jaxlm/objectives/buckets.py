"""Capacities that data decide, out of a few buckets: shared by objectives whose models shorten
their sequences.

The step of each bucket is compiled once. Which one comes next follows from the largest need of a
step and of the steps before, which lies in the train state and is saved with it. Axes: S what is
counted (stages), K buckets.
"""

import dataclasses
import math
from typing import Annotated

import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.objectives.base import Objective
from jaxlm.ranges import Count, Fraction, Range

#: Of the full length. At most this many compilations.
FRACTIONS = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)


@dataclasses.dataclass(frozen=True)
@checked
class BucketedObjective(Objective):
  """Base of objectives with buckets. Its state has the largest need of late under "largest".

  multiple: capacities are rounded up to it (lanes of a TPU, chunks of a scan). headroom: the next
  step's bucket holds so many times the largest need of late. memory: share of that need that is
  left after a step.
  """

  former_fields = {"slack": "it is called headroom now; write objective.headroom"}

  multiple: Count = 128
  headroom: Annotated[float, Range(1)] = 1.05
  memory: Fraction = 0.98

  def first_bucket(self, num_buckets):
    return num_buckets - 1  # what is untrained shortens little: begin where everything fits

  def next_bucket(self, fit, state, buckets):
    """The smallest with headroom over the largest need; a state without history: over this one's."""
    if "largest" not in state:
      return smallest_fitting(fit.need_S, buckets)
    largest_S = jnp.maximum(fit.need_S, state["largest"].reshape(-1))
    return smallest_fitting(self.headroom * largest_S, buckets)


def fractions_of(length: int, multiple: int, depth: int = 1) -> tuple[tuple[int, ...], ...]:
  """Growing buckets of `depth` capacities up to `length`, rounded up to `multiple`; each stage
  holds the same fraction of the one before.
  """

  def capacity(share):
    return min(length, math.ceil(length * share / multiple) * multiple)

  return tuple(
    dict.fromkeys(tuple(capacity(f ** (s + 1)) for s in range(depth)) for f in FRACTIONS)
  )


def check_capacities(capacities) -> None:
  """ConfigError for a list of buckets without any."""
  if capacities is not None and not capacities:
    raise ConfigError(
      "capacities = () has no bucket; give at least the length of the input, or None"
    )


def check_rows(name: str, rows_per_buffer: int, cfg) -> None:
  """ConfigError unless the rows of a micro-batch fill whole buffers. name: of the field. cfg:
  RunConfig.
  """
  rows = cfg.data.batch_size // cfg.train.accumulation
  if rows % rows_per_buffer:
    raise ConfigError(
      f"{name} = {rows_per_buffer} does not divide the {rows} rows of a (micro-)batch"
    )


def decayed_max(largest_S, need_S, memory: float):
  """The largest need of late: the maximum, of which `memory` is left after a step."""
  return jnp.maximum(need_S, memory * largest_S)


def smallest_fitting(need_S, buckets_KS):
  """int32 index of the smallest bucket that holds the need; the last one where none does."""
  buckets_KS = jnp.asarray(buckets_KS, jnp.float32).reshape(len(buckets_KS), -1)
  too_small_K = jnp.any(buckets_KS < jnp.minimum(need_S, buckets_KS[-1])[None], axis=1)
  return jnp.sum(too_small_K).astype(jnp.int32)
