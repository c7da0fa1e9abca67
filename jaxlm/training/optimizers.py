"""Optimisers: a direction from Optax, then decoupled weight decay and a learning rate per
parameter.

    p <- p - lr(step) m_p (direction(g) + decay_p p)

m_p and decay_p are numbers, found once by the parameter's path ('blocks/mixer/w_q'). Clipping by
global norm and the guard against non-finite gradients belong to the train step, which has the norm
at hand.
"""

import dataclasses
import re

import jax
import optax
import optax.contrib

from jaxlm.config import ConfigError, Kinds, checked
from jaxlm.parallel.rules import path_name
from jaxlm.ranges import BelowOne, NonNegative, Positive

OPTIMIZERS = Kinds(
  "optimizer",
  {
    "adamw": "jaxlm.training.optimizers:AdamW",
    "lion": "jaxlm.training.optimizers:Lion",
    "muon": "jaxlm.training.optimizers:Muon",
    "sgd": "jaxlm.training.optimizers:SGD",
  },
)


@dataclasses.dataclass(frozen=True)
@checked
class Optimizer:
  """decay: which parameters decay: "matrices" (matrices and tables, as each parameter's declaration
  says: `role` of jaxlm.parameter), "all", "none".
  decay_overrides, lr_multipliers: (regular expression, number) pairs searched in the path, the last
  match wins."""

  learning_rate: NonNegative
  weight_decay: NonNegative = 0.0
  decay: str = "matrices"
  clip_norm: Positive | None = 1.0
  lr_multipliers: tuple[tuple[str, NonNegative], ...] = ()
  decay_overrides: tuple[tuple[str, NonNegative], ...] = ()

  def __post_init__(self):
    if self.decay not in ("matrices", "all", "none"):
      raise ConfigError(
        f"decay = {self.decay!r}: wanted 'matrices', 'all' or 'none'; single parameters: decay_overrides"
      )
    for pattern, _ in self.lr_multipliers + self.decay_overrides:
      try:
        re.compile(pattern)
      except re.error as error:
        raise ConfigError(f"{pattern!r} is not a regular expression: {error}") from None

  def direction(self, axes) -> optax.GradientTransformation:
    """Gradient -> ascent direction. axes: logical names of each parameter."""
    raise NotImplementedError

  def build(self, axes) -> optax.GradientTransformationExtraArgs:
    """axes: tree of `parallel.rules.Axes`.

    update(grads, state, params, learning_rate=scalar) -> updates, state.
    """
    decays, multipliers = self.weight_decays(axes), self.multipliers(axes)
    direction = self.direction(axes)

    def update(grads, state, params, *, learning_rate):
      steps, state = direction.update(grads, state, params)

      def scaled(d, p, decay, m):
        return -learning_rate * m * (d + decay * p if decay else d)

      return jax.tree.map(scaled, steps, params, decays, multipliers), state

    return optax.GradientTransformationExtraArgs(direction.init, update)

  def weight_decays(self, axes):
    """Tree of floats: the weight decay of each parameter."""

    def decay(path, names):
      decays = self.decay == "all" or (self.decay == "matrices" and names.role.decays)
      return _last_match(
        self.decay_overrides, path_name(path), self.weight_decay if decays else 0.0
      )

    self._all_used(self.decay_overrides, axes, "decay_overrides")
    return jax.tree.map_with_path(decay, axes)

  def multipliers(self, axes):
    """Tree of floats: the factor of the learning rate of each parameter."""
    self._all_used(self.lr_multipliers, axes, "lr_multipliers")
    return jax.tree.map_with_path(
      lambda path, _: _last_match(self.lr_multipliers, path_name(path), 1.0), axes
    )

  def _all_used(self, pairs, axes, what):
    names = [path_name(path) for path, _ in jax.tree.leaves_with_path(axes)]
    for pattern, _ in pairs:
      if not any(re.search(pattern, name) for name in names):
        raise ConfigError(
          f"optimizer.{what}: {pattern!r} matches no parameter. It may be of a part that this model "
          f"does not have (a router by a rule has no parameters): leave it out, or correct it; there are "
          f"{', '.join(names)}"
        )


def _last_match(pairs, name: str, default: float) -> float:
  return next((value for pattern, value in reversed(pairs) if re.search(pattern, name)), default)


@dataclasses.dataclass(frozen=True, kw_only=True)
@checked
class AdamW(Optimizer):
  """m / (sqrt(v) + eps) with bias correction (Kingma & Ba 2015; Loshchilov & Hutter 2019)."""

  b1: BelowOne = 0.9
  b2: BelowOne = 0.95
  eps: NonNegative = 1e-8

  def direction(self, axes):
    return optax.scale_by_adam(self.b1, self.b2, self.eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
@checked
class Lion(Optimizer):
  """sign(b1 m + (1 - b1) g) (Chen et al. 2023)."""

  b1: BelowOne = 0.9
  b2: BelowOne = 0.99

  def direction(self, axes):
    return optax.scale_by_lion(self.b1, self.b2)


@dataclasses.dataclass(frozen=True, kw_only=True)
@checked
class Muon(Optimizer):
  """Orthogonalised momentum for weight matrices (Jordan et al. 2024); Adam, with Nesterov momentum
  too, for the rest, embedding and head included.

  consistent_rms: scale matrices to this RMS per element, so that one learning rate serves both
  (0.2: Liu et al. 2025).
  """

  momentum: BelowOne = 0.95
  b1: BelowOne = 0.9
  b2: BelowOne = 0.95
  eps: NonNegative = 1e-8
  consistent_rms: Positive | None = 0.2

  def direction(self, axes):
    dimensions = jax.tree.map(_muon_dimensions, axes)
    muon = optax.contrib.muon(
      1.0,
      beta=self.momentum,
      eps=self.eps,
      adam_b1=self.b1,
      adam_b2=self.b2,
      consistent_rms=self.consistent_rms,
      muon_weight_dimension_numbers=dimensions,
    )
    return optax.chain(muon, optax.scale(-1.0))


def _muon_dimensions(axes):
  """Which dimensions are input and output, as declared; None: no matrix."""
  if not axes.role.is_matrix:
    return None
  dims = [i for i, axis in enumerate(axes) if axis != "layers"]

  def at(numbers):
    return tuple(dims[n] for n in numbers)

  return optax.contrib.MuonDimensionNumbers(at(axes.role.inputs), at(axes.role.outputs))


@dataclasses.dataclass(frozen=True, kw_only=True)
@checked
class SGD(Optimizer):
  """g, or its running sum with momentum."""

  momentum: BelowOne = 0.0

  def direction(self, axes):
    return optax.trace(self.momentum) if self.momentum else optax.identity()
