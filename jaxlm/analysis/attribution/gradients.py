"""Attribution by the gradient with respect to the input vectors. Axes: B batch, T time, D d_model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.attribution.base import Method
from jaxlm.config import checked
from jaxlm.ranges import Count, NonNegative, Positive


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

  The integral is a sum over the middles of `steps` equal parts of u, s = u^power. 1 is the usual even
  spacing. A model whose first layer is a norm changes near s = 0 only, where its input is as small as
  the norm's epsilon: there a power of 4 converges and even spacing does not.
  """

  steps: Count = 20
  power: Positive = 1.0

  def __call__(self, question, key) -> np.ndarray:
    e_BTD, gradient, steps, power = question.vectors, _gradient(question), self.steps, self.power

    @jax.jit
    def run(e_BTD, params):
      def step(total, n):
        u = (n + 0.5) / steps
        return total + power * u ** (power - 1) * gradient(e_BTD * u**power, params), None

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
