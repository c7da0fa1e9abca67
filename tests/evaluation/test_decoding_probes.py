"""Branching factor, token forcing and token shift against closed forms and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.evaluation import branching_factor, token_forcing
from jaxlm.evaluation.token_shift import shares, token_shift
from jaxlm.generation import Sampling

TABLE = np.array([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05], [0.25, 0.25, 0.5]])


def markov_samples(num, length, rng):
  tokens = np.zeros((num, length + 1), int)
  for t in range(length):
    for b in range(num):
      tokens[b, t + 1] = rng.choice(3, p=TABLE[tokens[b, t]])
  return tokens


def test_the_branching_factor_of_a_known_markov_source():
  """Against exp of the mean entropy along the chain's own distribution; 5 % for 400 samples of 30."""
  rng, length = np.random.default_rng(0), 30
  tokens = markov_samples(400, length, rng)
  with np.errstate(divide="ignore"):
    logits = jnp.asarray(np.log(TABLE)[tokens[:, :-1]])
  h, lp = branching_factor.entropies(logits, jnp.asarray(tokens[:, 1:]), Sampling())
  found = branching_factor.branching(h, lp, np.ones((400, length), bool))
  row_entropy = -np.sum(np.where(TABLE > 0, TABLE * np.log(np.where(TABLE > 0, TABLE, 1)), 0), 1)
  state, mean = np.array([1.0, 0, 0]), []
  for _ in range(length):
    mean.append(state @ row_entropy)
    state = state @ TABLE
  want = np.exp(np.mean(mean))
  assert found.bf == pytest.approx(want, rel=0.05)
  assert found.aep == pytest.approx(want, rel=0.05)
  assert found.product == pytest.approx(found.bf, rel=1e-9)  # all samples are as long
  assert found.mean_of_exp >= found.bf
  np.testing.assert_allclose(found.by_position_T[2], np.exp(np.mean(mean[:5])), rtol=0.05)


def test_truncation_and_survivors_count():
  logits = jnp.log(jnp.asarray([[[0.5, 0.25, 0.15, 0.1]] * 2]))
  h, lp = branching_factor.entropies(logits, jnp.asarray([[0, 1]]), Sampling(top_k=2))
  p = np.array([2 / 3, 1 / 3])
  np.testing.assert_allclose(h[0], -np.sum(p * np.log(p)), rtol=1e-5)
  np.testing.assert_allclose(lp[0], np.log(p), rtol=1e-5)
  found = branching_factor.branching(
    [[1.0, 3.0], [2.0, 9.0]], [[-1.0, -1.0]] * 2, [[True, True], [True, False]], window=1
  )
  assert found.bf == pytest.approx(np.exp(2.0)) and found.alive_T.tolist() == [2, 1]
  np.testing.assert_allclose(found.by_position_T, np.exp([1.5, 3.0]))


MARKOV = np.array(
  [
    [0.2, 0.2, 0.2, 0.2, 0.2],
    [0.0, 0.01, 0.99, 0.0, 0.0],
    [0.0, 0.0, 0.01, 0.99, 0.0],
    [0.0, 0.99, 0.0, 0.01, 0.0],
    [0.3, 0.2, 0.2, 0.2, 0.1],
  ]
)


def markov_logits(tokens_NT):
  return np.log(MARKOV[np.asarray(tokens_NT)[:, -1]] + 1e-12)


def test_token_forcing_finds_what_brute_force_finds():
  def brute(v):
    p = []
    for _ in range(3):
      p.append(MARKOV[v].max())
      v = int(MARKOV[v].argmax())
    return (1 + sum(p)) / 4

  got = token_forcing.scores(markov_logits, [0], range(5), batch_size=2)
  np.testing.assert_allclose(got, [brute(v) for v in range(5)], rtol=1e-6)

  def continue_all(prompts):
    return token_forcing.greedy(markov_logits, prompts, 12)[0].tolist()

  found = token_forcing.extract(markov_logits, continue_all, [0], range(5))
  assert [c.token for c in found] == [1, 2, 3] and found[0].repetition > 0.9
  assert token_forcing.contains(found[0].tokens, [2, 3, 1]) and not token_forcing.contains(
    [1, 2], [2, 1]
  )
  one = token_forcing.scores(markov_logits, [0], [3])
  assert one[0] == got[3]  # alone and in a batch


def test_scores_ranks_and_repetition_by_hand():
  assert token_forcing.score([0.99, 0.98, 0.99]) == pytest.approx(0.99)
  assert token_forcing.score([0.93] * 3) == pytest.approx(0.9475)
  assert token_forcing.score([0.93] * 3) < token_forcing.KEPT
  assert token_forcing.rank([2.0, 1.0, 1.0], 2) == 3 and token_forcing.rank([2.0, 1.0], 0) == 1
  assert token_forcing.repetition(list("abcdabcdabcd")) == 1.0
  assert token_forcing.repetition(list("abcdefghijkl")) == 0.0


def test_classes_of_hand_made_distributions():
  p = jnp.asarray([[[0.4, 0.3, 0.15, 0.1, 0.05]] * 5])
  tokens = jnp.asarray([[0, 1, 2, 3, 4]])
  found = token_shift(jnp.log(p), jnp.log(p), tokens)
  assert found.rank.tolist() == [[1, 2, 3, 4, 5]] and found.kind.tolist() == [[0, 1, 1, 2, 2]]
  np.testing.assert_allclose(found.kl, 0, atol=1e-6)
  tie = token_shift(jnp.zeros((1, 1, 5)), jnp.zeros((1, 1, 5)), jnp.asarray([[4]]))
  assert tie.kind.tolist() == [[0]]  # a tie is not a better rank
  cold = token_shift(jnp.log(p), jnp.log(p) / 0.3, tokens)
  np.testing.assert_array_equal(cold.kind, found.kind)  # the base's temperature changes no class
  counted = shares(found, np.array([[True, True, False, True, False]]))
  assert counted["unshifted"] == pytest.approx(1 / 3) and counted["shifted"] == pytest.approx(1 / 3)


def test_the_divergence_against_a_double_loop_and_other_vocabularies_are_refused():
  rng = np.random.default_rng(0)
  tuned, base = rng.normal(size=(2, 2, 3, 4))
  found = token_shift(jnp.asarray(tuned), jnp.asarray(base), jnp.zeros((2, 3), int))
  p, q = (np.asarray(jax.nn.softmax(jnp.asarray(x))) for x in (tuned, base))
  for b in range(2):
    for t in range(3):
      want = sum(p[b, t, v] * np.log(p[b, t, v] / q[b, t, v]) for v in range(4))
      assert found.kl[b, t] == pytest.approx(want, abs=1e-5)
  with pytest.raises(ConfigError, match="over 4 tokens and the base model's over 3"):
    token_shift(jnp.asarray(tuned), jnp.asarray(base)[..., :3], jnp.zeros((2, 3), int))
