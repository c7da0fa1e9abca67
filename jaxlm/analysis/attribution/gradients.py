"""Attribution by the gradient with respect to the input vectors. Axes: B batch, T time, D d_model."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.attribution.base import Method
from jaxlm.config import checked
from jaxlm.ranges import Count, Natural, NonNegative


def _gradient(question):
  """params, (B, T, D) -> dF/de of each row."""
  return jax.grad(lambda e, params: jnp.sum(question.value(params, e)))


@dataclasses.dataclass(frozen=True)
class GradientXInput(Method):
  """a_t = sum_d e_td dF/de_td."""

  def __call__(self, question, key) -> np.ndarray:
    e_BTD = question.vectors
    grad = jax.jit(_gradient(question))(e_BTD, question.params)
    return np.asarray(jnp.sum(e_BTD * grad, axis=-1))


@dataclasses.dataclass(frozen=True)
@checked
class IntegratedGradients(Method):
  """a_t = sum_d (e - e0)_td times the integral over s in [0, 1] of dF/de_td(e0 + s (e - e0)), e0 = 0
  (Sundararajan et al. 2017). Completeness: sum_t a_t = F(e) - F(0) as steps grow.

  decades: 0 spaces s evenly, as usual. Otherwise log s is spaced evenly over so many powers of ten. A
  network that begins with norms does not change along the even path: each norm's output turns within
  the norm's epsilon, and the norms behind it amplify that again, so the gradient lies near s = 0: with
  epsilon = 1e-6 about three powers of ten further down for each norm, two a layer. There even steps
  never become complete; `metrics.completeness_gap` tells how far a choice is.
  """

  steps: Count = 20
  decades: Natural = 0

  def __call__(self, question, key) -> np.ndarray:
    e_BTD, gradient, steps = question.vectors, _gradient(question), self.steps
    rate = self.decades * math.log(10)

    @jax.jit
    def run(e_BTD, params):
      def step(total, n):
        u = (n + 0.5) / steps
        s = jnp.exp(-rate * (1 - u)) if rate else u
        return total + (rate * s if rate else 1.0) * gradient(e_BTD * s, params), None

      total, _ = jax.lax.scan(step, jnp.zeros_like(e_BTD), jnp.arange(steps))
      return jnp.sum(e_BTD * total / steps, axis=-1)

    return np.asarray(run(e_BTD, question.params))


@dataclasses.dataclass(frozen=True)
@checked
class SmoothGradient(Method):
  """Gradient x input with the mean gradient at `draws` inputs with normal noise of standard
  deviation `std` (Smilkov et al. 2017)."""

  draws: Count = 20
  std: NonNegative = 0.01

  def __call__(self, question, key) -> np.ndarray:
    e_BTD, gradient = question.vectors, _gradient(question)

    @jax.jit
    def run(e_BTD, params):
      def step(total, key):
        noise = self.std * jax.random.normal(key, e_BTD.shape)
        return total + gradient(e_BTD + noise, params), None

      keys = jax.random.split(key, self.draws)
      total, _ = jax.lax.scan(step, jnp.zeros_like(e_BTD), keys)
      return jnp.sum(e_BTD * total / self.draws, axis=-1)

    return np.asarray(run(e_BTD, question.params))
