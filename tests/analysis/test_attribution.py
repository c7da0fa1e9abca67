"""Attribution: completeness, closed forms on linear models, and brute force on three tokens."""

import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxlm.analysis.attribution import METHODS, Question, metrics
from jaxlm.analysis.attribution.gradients import GradientXInput, IntegratedGradients
from jaxlm.analysis.attribution.replacing import (
  EDGE,
  LeaveOneOut,
  ReAGent,
  expected_lead,
  step_of_scores,
  unigram,
)
from jaxlm.config import ConfigError

KEY = jax.random.key(0)


def question(rows=2, length=6, **fields):
  model = small.opened(**fields)
  tokens = small.tokens(rows=rows, length=length)
  return Question(model.config, model.params, tokens, np.arange(rows))


def value(q, e):
  return np.asarray(jax.jit(q.value)(q.params, e), np.float64)


@pytest.mark.parametrize("eps, decades", [(1.0, 0), (1e-6, 16)])
def test_integrated_gradients_are_complete_and_the_error_falls_with_the_steps(eps, decades):
  """With an epsilon as small as usual the gradient lies near 0: log steps find it, even ones do not."""
  q = question(norm=dict(kind="rms", eps=eps))
  change = value(q, q.vectors) - value(q, 0 * q.vectors)

  def error(steps, decades):
    return np.abs(IntegratedGradients(steps, decades)(q, KEY).sum(1) - change).max()

  coarse, fine = error(16, decades), error(256, decades)
  assert fine < coarse and fine < 1e-3 * (1 if not decades else 10), (coarse, fine)
  if decades:
    assert error(256, 0) > 0.1


class Linear:
  """F = sum_t w_t . e_t: what a question asks of a model, without a model."""

  config = types.SimpleNamespace(vocab_size=4)
  params = ()

  def __init__(self):
    rng = np.random.default_rng(0)
    self.w = jnp.asarray(rng.standard_normal((2, 3)), jnp.float32)
    self.vectors = jnp.asarray(rng.standard_normal((1, 2, 3)), jnp.float32)

  def value(self, params, e):
    return jnp.sum(self.w[None] * e, axis=(1, 2))


class Steep(Linear):
  """A value that changes at 0.37 of the way, within a hundredth of it."""

  def value(self, params, e_BTD):
    so_far = jnp.sum(e_BTD * self.vectors, axis=(1, 2)) / jnp.sum(self.vectors**2)
    return jnp.tanh(300 * (so_far - 0.37))


def test_steps_lie_where_a_scan_of_the_path_finds_change():
  q = Steep()
  gaps = [abs(IntegratedGradients(60, scan=n)(q, KEY).sum() - 2) for n in (0, 2000)]
  assert gaps[0] > 0.5 and gaps[1] < 0.1, gaps


def test_on_a_linear_model_one_step_is_exact_and_equals_gradient_times_input():
  q = Linear()
  want = np.asarray(jnp.sum(q.w[None] * q.vectors, -1))
  complete = IntegratedGradients(1)(q, KEY)
  np.testing.assert_allclose(complete, want, rtol=1e-6)
  assert metrics.completeness_gap(q, complete) < 1e-6
  np.testing.assert_allclose(metrics.completeness_gap(q, 1.5 * complete), 0.5, rtol=1e-5)
  np.testing.assert_allclose(GradientXInput()(q, KEY), want, rtol=1e-6)


def test_the_difference_of_two_targets_is_attributed_as_the_difference():
  q = question()
  against = Question(q.config, q.params, q.tokens_BT, np.array([5, 6]))
  both = Question(q.config, q.params, q.tokens_BT, q.targets_B, against_B=np.array([5, 6]))
  parts = [GradientXInput()(x, KEY) for x in (q, against, both)]
  np.testing.assert_allclose(parts[2], parts[0] - parts[1], atol=1e-5)


def test_a_step_of_the_scores_by_hand_and_without_infinities():
  s = jnp.zeros((3, 2))
  replaced = jnp.asarray([[True, False]] * 3)
  got = step_of_scores(s, replaced, jnp.asarray([0.5, 0.0, 1.0]))
  np.testing.assert_allclose(got[0], [math.log(3), -math.log(3)], rtol=1e-5)
  np.testing.assert_allclose(got[1], 0, atol=1e-7)
  most = math.log(1 - EDGE) - math.log(EDGE)
  np.testing.assert_allclose(got[2], [most, -most], rtol=1e-2)
  np.testing.assert_allclose(expected_lead(0.3, 0.5), 0.4614, atol=1e-4)


class OneToken:
  """p(target) = 0.5 if the token at `at` is intact, else 0: whatever the other tokens are."""

  config = types.SimpleNamespace(vocab_size=4)
  params = ()

  def __init__(self, length=5, at=2, c=0.5):
    self.tokens_BT, self.targets_B = np.ones((1, length), np.int32), np.array([3])
    self.at, self.c = at, c

  def log_probs(self, params, tokens, vectors=None):
    p = jnp.where(tokens[:, self.at] == 1, self.c, 1e-30)
    rest = (1 - p) / 3
    return jnp.log(jnp.stack([rest, rest, rest, p], axis=1))

  def picked(self, log_p):
    return log_p[:, 3]


def test_the_lead_of_the_one_relevant_token_grows_as_the_formula_says():
  q = OneToken()
  steps, chains = 400, 16
  found = ReAGent(steps=steps, chains=chains, stop=False).run(q, KEY).importance_BT[0]
  assert found.argmax() == 2 and found[2] > 0.99
  # Before the softmax: by simulation of the same steps.
  rng = np.random.default_rng(0)
  replaced = jnp.asarray(rng.random((20_000, 5)) < 0.3)
  drop = jnp.where(replaced[:, 2], 0.5, 0.0)
  step = step_of_scores(jnp.zeros((20_000, 5)), replaced, drop)
  lead = np.asarray(step[:, 2] - step[:, 0])
  assert abs(lead.mean() - expected_lead(0.3, 0.5)) < 4 * lead.std() / 20_000**0.5


def test_reagent_ranks_three_tokens_as_brute_force_does():
  """Brute force: the mean drop of p(target) over all replacements of all subsets that hold a token, by
  their probability, against those that do not."""
  q = question(rows=1, length=3)
  V, rate, rng = q.config.vocab_size, 0.3, np.random.default_rng(0)
  p = lambda rows: np.exp(  # noqa: E731
    np.asarray(jax.jit(lambda t: q.picked(q.log_probs(q.params, t)))(jnp.asarray(rows)))
  )
  tokens = np.asarray(q.tokens_BT)[0]
  whole, score = float(p(tokens[None])[0]), np.zeros(3)
  for subset in itertools.product((False, True), repeat=3):
    chance = math.prod(rate if x else 1 - rate for x in subset)
    options = [[v for v in range(V) if v != t] if x else [t] for x, t in zip(subset, tokens)]
    rows = np.array(list(itertools.product(*options)), np.int32)
    rows = rows[rng.permutation(len(rows))[:1000]]
    d = np.clip((whole - p(np.pad(rows, ((0, 1000 - len(rows)), (0, 0))))[: len(rows)]), -1, 1)
    gain = (np.log1p(d) - np.log1p(-d)).mean()
    score += chance * np.where(subset, gain, -gain)
  found = ReAGent(rate=rate, steps=600, chains=16, stop=False)(q, KEY)[0]
  assert np.argmax(found) == np.argmax(score)
  assert np.argmin(found) == np.argmin(score)


def test_replacements_are_never_the_same_token():
  tokens = jnp.asarray(small.tokens(rows=50, length=20))
  assert not bool((unigram(jnp.ones(small.V))(KEY, tokens) == tokens).any())


def test_distances_and_soft_metrics_by_hand():
  p, r = jnp.asarray([0.5, 0.5]), jnp.asarray([1.0, 0.0])
  np.testing.assert_allclose(metrics.distance_as_released(p, r), 0.4142, atol=1e-4)
  np.testing.assert_allclose(metrics.hellinger(p, r), 0.5412, atol=1e-4)
  q = question()
  kept = metrics.soft(q, np.ones((2, 6)), KEY)
  np.testing.assert_allclose(kept.sufficiency, 1.0, atol=1e-6)
  np.testing.assert_allclose(kept.comprehensiveness, 1 - kept.baseline, atol=1e-6)
  np.testing.assert_array_equal(
    metrics.precision_at([[0.1, 0.9, 0.5]], [[True, False, True]], 2), [0.5]
  )


@pytest.mark.parametrize("method", sorted(METHODS.table))
def test_every_method_gives_a_finite_number_per_token_and_attention_rows_sum_to_one(method):
  q = question(rows=1, length=5)
  fields = {"reagent": dict(steps=3, chains=2), "smooth_gradient": dict(draws=2)}
  one = METHODS.build({"kind": method} | fields.get(method, {}))
  a = np.asarray(one(q, KEY))
  assert a.shape == (1, 5) and np.isfinite(a).all()
  if method in ("attention", "rollout"):
    np.testing.assert_allclose(a.sum(1), 1, atol=1e-5)


def test_leave_one_out_is_the_mean_over_replacements():
  q = OneToken()
  a = LeaveOneOut(draws=2)(q, KEY)[0]
  assert a[2] > 10 and np.allclose(np.delete(a, 2), 0, atol=1e-5)


def test_wrong_questions_are_one_sentence():
  q = question()
  with pytest.raises(ConfigError, match="the vocabulary has tokens 0 .. 10"):
    Question(q.config, q.params, q.tokens_BT, np.array([0, 11]))
  with pytest.raises(ConfigError, match="give two tokens or more"):
    ReAGent()(question(rows=1, length=1), KEY)
  mamba = small.decoder(mixer=dict(kind="mamba2", d_state=4, head_dim=8), mlp=None)
  with pytest.raises(ConfigError, match="use a gradient method"):
    Question(mamba, None, q.tokens_BT, q.targets_B).attention()
