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
  scan: 0, or parts of the path whose ends are first evaluated (scan + 1 forward passes a row). Each
  row's steps then have about equal change of F: its change over the path and, spread evenly, a
  quarter as much again. A trained network's value may rise and fall by many times F(e) - F(0) on
  the way.
  """

  steps: Count = 20
  decades: Natural = 0
  scan: Natural = 0

  def _at(self, u):
    """(s, ds / du) of the path's coordinate u in [0, 1]."""
    if not self.decades:
      return u, jnp.ones_like(u)
    rate = self.decades * math.log(10)
    s = jnp.exp(-rate * (1 - u))
    return s, rate * s

  def _edges(self, question, e_BTD, params):
    """(steps + 1, B): the ends of each row's steps in u."""
    B, even = len(e_BTD), jnp.linspace(0.0, 1.0, self.steps + 1)
    if not self.scan:
      return jnp.broadcast_to(even[:, None], (self.steps + 1, B))
    grid = jnp.linspace(0.0, 1.0, self.scan + 1)
    F_UB = jax.lax.map(lambda u: question.value(params, e_BTD * self._at(u)[0]), grid)
    change_UB = jnp.abs(jnp.diff(F_UB, axis=0))
    # A quarter as much again is spread evenly, so that no stretch is left out.
    change_UB += jnp.maximum(change_UB.mean(axis=0, keepdims=True), 1e-12) / 4
    so_far_UB = jnp.concatenate([jnp.zeros((1, B)), jnp.cumsum(change_UB, axis=0)])
    so_far_UB /= so_far_UB[-1:]
    return jax.vmap(lambda c: jnp.interp(even, c, grid), in_axes=1, out_axes=1)(so_far_UB)

  def __call__(self, question, key) -> np.ndarray:
    gradient = _gradient(question)

    @jax.jit
    def run(e_BTD, params):
      edges = self._edges(question, e_BTD, params)

      def step(total, ends):
        start_B, end_B = ends
        s_B, rate_B = self._at((start_B + end_B) / 2)
        weight_B = (end_B - start_B) * rate_B
        return total + weight_B[:, None, None] * gradient(e_BTD * s_B[:, None, None], params), None

      total, _ = jax.lax.scan(step, jnp.zeros_like(e_BTD), (edges[:-1], edges[1:]))
      return jnp.sum(e_BTD * total, axis=-1)

    return np.asarray(run(question.vectors, question.params))


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
