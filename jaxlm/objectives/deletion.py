"""What makes a delete gate delete: regularisers of the gate, and the PI controller of their weight.

Axes: B batch, L encoder length. docs/specs/mrt5.md, section 3.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.ranges import BelowOne, NonNegative, Range

#: Names of the release, longest first: they are matched by substring.
REGULARISERS = ("clamped_logits_mean", "logits_mean", "gate_var", "gate_mean")


def mean(x_BL, real_BL):
  return jnp.sum(jnp.where(real_BL, x_BL, 0.0)) / jnp.maximum(jnp.sum(real_BL), 1)


def gate_regulariser(name: str, gate_BL, logits_BL, real_BL, threshold: float):
  """R, the term that alpha multiplies, over real positions: mean G, mean z, mean max(z, 2 tau), or
  the variance of G.
  """
  kind = next((kind for kind in REGULARISERS if kind in name), None)
  if kind is None:
    raise ConfigError(f"regulariser = {name!r} is none of {', '.join(REGULARISERS)}")
  if kind == "clamped_logits_mean":
    return mean(jnp.maximum(logits_BL, 2 * threshold), real_BL)
  if kind == "logits_mean":
    return mean(logits_BL, real_BL)
  if kind == "gate_var":
    centred_BL = gate_BL - mean(gate_BL, real_BL)
    return jnp.sum(jnp.where(real_BL, jnp.square(centred_BL), 0.0)) / jnp.maximum(
      jnp.sum(real_BL) - 1, 1
    )
  return mean(gate_BL, real_BL)


def entropy(g):
  """H of a Bernoulli with log-probability g: -(q g + (1 - q) log(1 - q)), q = exp(g)."""
  q = jnp.exp(g)
  return -(q * g + (1 - q) * jnp.log1p(-jnp.minimum(q, 1 - jnp.finfo(jnp.float32).eps)))


def entropy_regulariser(gate_BL, c1: float, c2: float):
  """c1 * mean entropy of each gate - c2 * mean entropy of a row's mean gate; over every position,
  padding too, as released.
  """
  length = gate_BL.shape[1]
  each_BL = entropy(gate_BL)
  rows_B = entropy(jax.nn.logsumexp(gate_BL, axis=1) - jnp.log(length))
  return c1 * jnp.mean(each_BL) - c2 * jnp.mean(rows_B)


@dataclasses.dataclass(frozen=True)
@checked
class Controller:
  """err = target - rate; p <- 0.9 p + 0.1 k_p err; i <- i + k_i err; alpha = max(0, p + i).

  every: steps between updates. per_micro_batch: the release moves after every micro-batch of an
  accumulated step, the next
    one seeing the new alpha; False moves once per step, from the rate of all of it. (The release
    also moves while it evaluates and per process; neither is done here.)
  """

  target: BelowOne
  k_p: NonNegative = 0.5
  k_i: NonNegative = 1e-5
  every: Annotated[int, Range(1, 2**31 - 1)] = 1
  per_micro_batch: bool = False

  def update(self, p, i, rate):
    """(alpha, p, i) after a step whose deletion rate was `rate`."""
    error = self.target - rate
    p, i = 0.9 * p + 0.1 * self.k_p * error, i + self.k_i * error
    return jnp.maximum(0.0, p + i), p, i


def integral_controller(alpha, rate, target: float, k_i: float):
  """The early paper's: alpha <- max(0, alpha + k_i (target - rate))."""
  return jnp.maximum(0.0, alpha + k_i * (target - rate))
