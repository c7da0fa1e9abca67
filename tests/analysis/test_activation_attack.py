"""Attacks: a linear model in closed form, exact enumeration, and the model's own logits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxlm.analysis import activation_attack as aa
from jaxlm.config import ConfigError


def linear(W, targets, steps, rate=0.1):
  run = jax.jit(
    lambda: aa.minimise(
      lambda delta: jnp.einsum("btd,vd->btv", delta, W),
      (len(targets), 1, W.shape[1]),
      jnp.asarray(targets)[:, None],
      jnp.ones((len(targets), 1)),
      steps=steps,
      learning_rate=rate,
    )
  )
  return run()


def test_the_attack_on_a_linear_model_is_its_closed_form():
  """Logits W delta. A token can be the most probable one exactly if its row is a corner of the hull.

  Row 3 is the mean of the others, so no delta makes it win; the corners are all reached. The first
  step of Adam is -rate sign(W^T (p - e)).
  """
  W = jnp.asarray([[1.0, 0.2], [-0.5, 1.0], [-0.4, -1.0], [0.1 / 3, 0.2 / 3]])
  found = linear(W, [0, 1, 2, 3], steps=60)
  np.testing.assert_array_equal(found.success_B, [True, True, True, False])
  # The mean of three logits has at most the share 1/4, and has it at delta = 0.
  np.testing.assert_allclose(found.loss_B[3], np.log(4), rtol=1e-6)
  assert found.loss_B[:3].max() < np.log(4)
  first = linear(W, [0, 1, 2, 3], steps=1).delta[:, 0]
  p = np.full((4, 4), 0.25)
  want = -0.1 * np.sign((p - np.eye(4)) @ np.asarray(W))
  np.testing.assert_allclose(first[:3], want[:3], atol=1e-5)  # that of row 3 is 0 but for rounding


def test_a_search_over_one_token_is_exhaustive_and_over_two_no_worse_than_one():
  rng = np.random.default_rng(0)
  table = rng.standard_normal((5, 5, 5))
  value = lambda rows: np.array([table[tuple(r)] for r in rows])  # noqa: E731
  context = np.array([0, 1, 2])
  found, best = aa.token_attack(value, context, 5, 1)
  assert best == table[:, 1, 2].max() and found[0] == table[:, 1, 2].argmax()
  _, two = aa.token_attack(value, context, 5, 2)
  assert best <= two <= max(table[a, b, 2] for a, b in itertools.product(range(5), repeat=2))


def test_a_free_embedding_makes_a_model_say_one_token_and_only_early_positions_move():
  model = small.opened()
  rng = np.random.default_rng(1)
  context = small.tokens(rows=3, length=4)
  targets = rng.integers(0, small.V, (3, 3))
  sized = aa.attacker(aa.Attack(steps=80, learning_rate=0.2), model, context, targets)
  found = sized(4, 1)
  assert found.success_B.all()
  assert not sized(1, 1).delta[:, 1:].any() and sized(1, 1).delta[:, 0].any()
  best, rates = aa.most_targets(sized, 4, (1, 2, 3), 0.8)
  assert best >= 1 and set(rates) <= {1, 2, 3}
  with pytest.raises(ConfigError, match="the context has 4 tokens"):
    sized(5, 1)
  with pytest.raises(ConfigError, match="there are layers 0 .. 1"):
    aa.attacker(aa.Attack(layer=7), model, context, targets)


def test_the_line_and_the_resistance_by_hand():
  found = aa.line([1, 2, 4], [3, 5, 9])
  np.testing.assert_allclose([found["kappa"], found["intercept"], found["r2"]], [2, 1, 1])
  assert aa.resistance(2.0, 64, 256) == 64 * 16 / (2 * 8)
