"""Learning-rate schedules: a factor of `optimizer.learning_rate` per step.

`factor(step, num_steps)`: step counts from 0 (the first update), num_steps is `train.steps`; both
may be traced. All warm up as (step + 1) / warmup_steps, so the first update is not lost.
"""

import dataclasses

import jax.numpy as jnp

from jaxlm.config import ConfigError, Kinds, checked
from jaxlm.ranges import Cadence, Fraction

SCHEDULES = Kinds(
  "schedule",
  {
    "cosine": "jaxlm.training.schedules:Cosine",
    "linear": "jaxlm.training.schedules:Linear",
    "warmup_stable_decay": "jaxlm.training.schedules:WarmupStableDecay",
    "inverse_sqrt": "jaxlm.training.schedules:InverseSqrt",
    "constant": "jaxlm.training.schedules:Constant",
  },
)


@dataclasses.dataclass(frozen=True)
@checked
class Schedule:
  warmup_steps: Cadence = 0

  #: whether the factor at a step depends on num_steps: if not, a finished run may be extended
  needs_num_steps = True

  def factor(self, step, num_steps):
    warmup = (step + 1.0) / max(self.warmup_steps, 1)
    return jnp.where(step < self.warmup_steps, warmup, self.after_warmup(step, num_steps)).astype(
      jnp.float32
    )

  def after_warmup(self, step, num_steps):
    raise NotImplementedError

  def progress(self, step, num_steps):
    """Fraction in [0, 1] of the steps after warmup."""
    return jnp.clip(
      (step - self.warmup_steps) / jnp.maximum(num_steps - self.warmup_steps, 1), 0.0, 1.0
    )


@dataclasses.dataclass(frozen=True)
@checked
class Cosine(Schedule):
  """final + (1 - final) (1 + cos(pi p)) / 2 with p the progress after warmup."""

  final_fraction: Fraction = 0.1

  def after_warmup(self, step, num_steps):
    wave = 0.5 * (1 + jnp.cos(jnp.pi * self.progress(step, num_steps)))
    return self.final_fraction + (1 - self.final_fraction) * wave


@dataclasses.dataclass(frozen=True)
@checked
class Linear(Schedule):
  """1 - (1 - final) p."""

  final_fraction: Fraction = 0.0

  def after_warmup(self, step, num_steps):
    return 1 - (1 - self.final_fraction) * self.progress(step, num_steps)


@dataclasses.dataclass(frozen=True)
@checked
class WarmupStableDecay(Schedule):
  """1 until the last `decay_fraction` of the steps, then linear (or 1 - sqrt) down to
  `final_fraction`.
  """

  decay_fraction: Fraction = 0.2
  final_fraction: Fraction = 0.0
  decay: str = "linear"

  def __post_init__(self):
    super().__post_init__()
    if self.decay not in ("linear", "sqrt"):
      raise ConfigError(f"decay = {self.decay!r}: wanted 'linear' or 'sqrt'")

  def after_warmup(self, step, num_steps):
    length = jnp.maximum(self.decay_fraction * num_steps, 1)
    p = jnp.clip((step - (num_steps - length)) / length, 0.0, 1.0)
    return 1 - (1 - self.final_fraction) * (p if self.decay == "linear" else jnp.sqrt(p))


@dataclasses.dataclass(frozen=True)
class InverseSqrt(Schedule):
  """sqrt(warmup / (step + 1)): 1 at the end of warmup."""

  needs_num_steps = False

  def after_warmup(self, step, num_steps):
    return jnp.sqrt(max(self.warmup_steps, 1) / (step + 1.0))


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
  """1 after warmup."""

  needs_num_steps = False

  def after_warmup(self, step, num_steps):
    return jnp.ones_like(step, jnp.float32)
