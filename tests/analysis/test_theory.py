"""Training whose end and whose course are known in closed form."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.analysis.theory import linear_regression as lr
from jaxlm.analysis.theory import scan_and_snap as ss


def test_the_prediction_is_the_last_entry_of_the_layer_s_output():
  rng = np.random.default_rng(0)
  prompts = lr.draw(rng, lr.covariance("geometric", 3), 2, 4)
  weights = lr.Weights(*rng.standard_normal((2, 4, 4)))
  for b in range(2):
    examples = np.vstack([prompts.x[b].T, prompts.y[b]])
    E = np.column_stack([examples, np.append(prompts.query[b], 0)])
    f = E + weights.w_pv @ E @ (E.T @ weights.w_kq @ E) / 4
    np.testing.assert_allclose(lr.predict(weights, prompts)[b], f[-1, -1])


def test_gradients_are_difference_quotients():
  rng = np.random.default_rng(1)
  prompts = lr.draw(rng, lr.covariance("geometric", 3), 5, 4)
  weights = lr.Weights(*rng.standard_normal((2, 4, 4)))
  along = lr.Weights(*rng.standard_normal((2, 4, 4)))

  def at(t):
    moved = lr.Weights(*(w + t * a for w, a in zip(weights, along)))
    return lr.loss_and_gradient(moved, prompts)[0]

  _, grads = lr.loss_and_gradient(weights, prompts)
  # The other rows of W_PV do not reach the prediction.
  want = sum(np.sum(g * a) for g, a in zip(grads, along))
  np.testing.assert_allclose((at(1e-5) - at(-1e-5)) / 2e-5, want, rtol=1e-6)
  u, A = 0.7, lr.initial(3, 0.5, rng)
  cov = lr.covariance("geometric", 3)
  weights = A._replace(w_pv=A.w_pv * u)

  def exact(t):
    moved = lr.Weights(*(w + t * a for w, a in zip(weights, lr.initial(3, 1.0, rng_of(2)))))
    return 0.5 * lr.risk(moved.w_pv[3, 3] * moved.w_kq[:3, :3].T, cov, 6)

  step = lr.population_step(weights, cov, 6)
  want = sum(np.sum(g * a) for g, a in zip(step, lr.initial(3, 1.0, rng_of(2))))
  np.testing.assert_allclose((exact(1e-5) - exact(-1e-5)) / 2e-5, want, rtol=1e-6)


def rng_of(seed):
  return np.random.default_rng(seed)


def test_the_risk_formula_is_the_mean_over_sampled_prompts_also_under_shifts():
  cov, d, M = lr.covariance("geometric", 4), 4, 6
  product = np.linalg.inv(lr.gamma(cov, 10))
  for shift in (dict(), dict(task_scale=2.0), dict(query_cov=3 * np.eye(4))):
    prompts = lr.draw(np.random.default_rng(3), cov, 60_000, M, **shift)
    y = np.einsum("bd,de,bne,bn->b", prompts.query, product, prompts.x, prompts.y) / M
    errors = (y - prompts.answer) ** 2
    spread = errors.std() / len(errors) ** 0.5
    assert abs(errors.mean() - lr.risk(product, cov, M, **shift)) < 4 * spread
  # Under a covariance that grew, the bias stays however many examples there are.
  bias = (product @ (2 * cov) - np.eye(d)) @ np.eye(d)
  want = np.trace(2 * cov @ bias @ bias.T)
  np.testing.assert_allclose(lr.risk(product, 2 * cov, 10**9), want, rtol=1e-6)


@pytest.mark.parametrize("kind", ["identity", "geometric"])
def test_gradient_descent_reaches_the_closed_form_within_two_per_cent(kind):
  cov = lr.covariance(kind, 5)
  how = lr.Training(steps=15_000, learning_rate=0.02)
  weights, _ = lr.train(how, cov, 20, np.random.default_rng(0))
  goal = lr.optimum(cov, 20)
  assert lr.distance(lr.initial(5, 0.3, np.random.default_rng(0)), goal) > 0.4
  assert lr.distance(weights, goal) < 0.02
  product = weights.w_pv[5, 5] * weights.w_kq[:5, :5].T
  np.testing.assert_allclose(product, np.linalg.inv(lr.gamma(cov, 20)), atol=0.02)


def test_sampled_prompts_lead_to_the_same_weights():
  cov = lr.covariance("identity", 3)
  how = lr.Training(steps=600, learning_rate=0.02, batch=256)
  weights, _ = lr.train(how, cov, 10, np.random.default_rng(0))
  assert lr.distance(weights, lr.optimum(cov, 10)) < 0.08
  how = lr.Training(steps=600, learning_rate=0.01, optimizer="adam", batch=256)
  weights, _ = lr.train(how, cov, 10, np.random.default_rng(0))
  assert lr.product_distance(weights, cov, 10) < 0.08 < lr.distance(weights, lr.optimum(cov, 10))


def test_least_squares_is_exact_without_noise():
  prompts = lr.draw(np.random.default_rng(0), np.eye(3), 4, 5)
  np.testing.assert_allclose(lr.least_squares(prompts), prompts.answer, rtol=1e-6)


def parameters(C, V, seed=0):
  rng = np.random.default_rng(seed)
  return ss.Parameters(rng.standard_normal((V, C)), rng.standard_normal((C, V)))


def test_the_gradient_is_that_of_the_loss_enumerated_over_all_contexts():
  """Two classes, three tokens, contexts of three: all 27 sequences with their probabilities."""
  one = ss.task(2, 1, 1, np.random.default_rng(0))
  p = parameters(2, 3)
  counts, classes, shares = [], [], []
  for n in range(2):
    for sequence in itertools.product(range(3), repeat=3):
      chance = math.prod(one.frequency_CV[n, l] for l in sequence)
      if chance > 0:
        counts.append(np.bincount(sequence, minlength=3))
        classes.append(n)
        shares.append(one.share_C[n] * chance)
  counts, classes, shares = np.array(counts, float), np.array(classes), np.array(shares)
  assert abs(shares.sum() - 1) < 1e-12

  def loss(y, z):
    e = jnp.asarray(counts) * jnp.exp(z[one.query_C[classes]])
    b = e / e.sum(1, keepdims=True)
    f = b / jnp.linalg.norm(b, axis=1, keepdims=True)
    log_p = jax.nn.log_softmax(f @ y)
    return -jnp.sum(jnp.asarray(shares) * log_p[jnp.arange(len(classes)), classes])

  want, (dy, dz) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*map(jnp.asarray, p))
  got, grads = ss.loss_and_gradient(p, counts, classes, one.query_C[classes], shares)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(grads.y_VC, dy, atol=1e-6)
  np.testing.assert_allclose(grads.z_MV, dz, atol=1e-6)


def test_long_contexts_give_the_population_gradient():
  one, p = ss.task(2, 2, 2, np.random.default_rng(1)), parameters(2, 6)
  rng, T = np.random.default_rng(2), 20_000
  counts = np.stack([rng.multinomial(T, one.frequency_CV[n]) for n in range(2)]) / T
  _, want = ss.population(p, one)
  _, got = ss.loss_and_gradient(p, counts, np.arange(2), one.query_C, one.share_C)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=0.02)


def test_distinct_tokens_grow_in_the_order_of_their_frequency_and_common_ones_shrink():
  one = ss.task(3, 6, 6, np.random.default_rng(0))
  found = ss.train(one, ss.Training(steps=1000, eta_y=0.5, eta_z=0.1), points=1000)
  at = ss.snap(found)
  assert ss.rank_correlation(one, found.z[at]) >= 0.9
  faster = ss.train(one, ss.Training(steps=1000, eta_y=5.0, eta_z=0.1), points=1000)
  assert faster.steps[ss.snap(faster)] < found.steps[at]
  common = found.z[-1][:, one.distinct_V == -1]
  distinct = np.concatenate([found.z[-1][n, one.distinct_V == n] for n in range(3)])
  assert common.max() < 0 < distinct.max() and distinct.mean() > common.mean()
  b = ss.by_type(one, found.attention)
  assert b["distinct"][-1] > b["distinct"][0] and b["common"][-1] < b["common"][0]
  assert found.loss[-1] < found.loss[0]
