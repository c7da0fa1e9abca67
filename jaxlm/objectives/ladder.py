"""Capacities that data decide, from a ladder of few: shared by objectives whose models shorten
their sequences.

The step of each rung is compiled once. Which rung comes next follows from globally reduced metrics
and from the largest need of late, which lies in the train state and is saved with it. Axes: S what
is counted (stages), K rungs.
"""

import math

import jax.numpy as jnp

from jaxlm.config import ConfigError
from jaxlm.objectives.base import Pair

#: Of the full length. At most this many compilations.
FRACTIONS = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)


def rungs(length: int, multiple: int, fractions=FRACTIONS) -> tuple[int, ...]:
  """Growing capacities up to `length`, rounded up to `multiple` (lanes of a TPU)."""
  return tuple(
    dict.fromkeys(min(length, math.ceil(length * f / multiple) * multiple) for f in fractions)
  )


def check_capacities(capacities, multiple: int) -> None:
  if capacities is not None and not capacities:
    raise ConfigError(
      "capacities = (): the ladder is empty; give at least the length of the input, or None"
    )
  if multiple < 1:
    raise ConfigError(f"multiple = {multiple}: wanted 1 or more; 128 suits a TPU")


def remember(largest_S, now_S, memory: float):
  """Largest need of late: the maximum, forgotten by `memory` per step."""
  return jnp.maximum(now_S, memory * largest_S)


def wanted(now_S, largest_S, buckets_KS, slack: float) -> Pair:
  """Index of the smallest rung with room for `slack` times the largest need. largest None: no
  history, just for now.
  """
  need_S = now_S if largest_S is None else slack * jnp.maximum(now_S, largest_S)
  buckets_KS = jnp.asarray(buckets_KS, jnp.float32).reshape(len(buckets_KS), -1)
  too_small_K = jnp.any(buckets_KS < jnp.minimum(need_S, buckets_KS[-1])[None], axis=1)
  return Pair(jnp.sum(too_small_K).astype(jnp.float32), jnp.ones((), jnp.float32))


def choose(metrics, current: int) -> int:
  """The rung that the metrics ask for; of micro-batches that differ the mean, rounded up: a redone
  step finds the rest.
  """
  if "wanted_bucket" not in metrics:
    return current
  return math.ceil(
    float(metrics["wanted_bucket"].sum) / float(metrics["wanted_bucket"].weight) - 1e-6
  )
