"""The Bigram-Backcopy generator follows its tables, and its Bayes loss is exact."""

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.backcopy import Backcopy, BackcopyData


def task(copy=1.0):
  rng = np.random.default_rng(3)
  P = rng.dirichlet(np.full(4, 0.8), 4)
  return Backcopy(np.array([0.0, 0.5, 0.3, 0.2]), P, np.array([True, False, False, False]), copy)


@pytest.mark.parametrize("copy", [1.0, 0.6])
def test_the_empirical_law_is_that_of_the_tables(copy):
  one, rng = task(copy), np.random.default_rng(0)
  rows = np.stack([one.sample(12, rng) for _ in range(3000)])
  first = np.bincount(rows[:, 0], minlength=4) / len(rows)
  assert abs(first - one.start_V).max() < 4 * 0.5 / len(rows) ** 0.5 and first[0] == 0
  pairs = one.pair_law(12)
  for t in (1, 5, 11):
    found = np.zeros((4, 4))
    np.add.at(found, (rows[:, t - 1], rows[:, t]), 1 / len(rows))
    assert abs(found - pairs[t - 1]).max() < 4 * 0.5 / len(rows) ** 0.5
  np.testing.assert_allclose(pairs.sum((1, 2)), 1)
  before, last, following = rows[:, 3], rows[:, 4], rows[:, 5]
  copied = following[last == 0] == before[last == 0]
  if copy == 1.0:
    assert copied.all()
  for b, l in ((0, 1), (2, 0), (1, 2)):
    here = following[(before == b) & (last == l)]
    if len(here) > 50:
      share = np.bincount(here, minlength=4) / len(here)
      assert abs(share - one.conditional(np.array(b), np.array(l))).max() < 2.5 / len(here) ** 0.5


@pytest.mark.parametrize("copy", [1.0, 0.6])
def test_the_bayes_loss_is_the_sum_over_all_texts(copy):
  """Three symbols, five letters: every text with its probability, one by one."""
  rng = np.random.default_rng(1)
  one = Backcopy(
    np.array([0.0, 0.7, 0.3]), rng.dirichlet(np.ones(3), 3), np.array([True, False, False]), copy
  )
  total, of_trigger, share = 0.0, 0.0, 0.0
  for text in np.ndindex(3, 3, 3, 3, 3):
    p = one.start_V[text[0]] * one.transition_VV[text[0], text[1]]
    nll = []
    for t in range(2, 5):
      q = one.conditional(np.array(text[t - 2]), np.array(text[t - 1]))[text[t]]
      p *= q
      nll.append((-np.log(q) if q > 0 else 0.0, text[t - 1] == 0))
    total += p * sum(x for x, _ in nll)
    of_trigger += p * sum(x for x, trigger in nll if trigger)
    share += p * sum(trigger for _, trigger in nll)
  found = one.bayes_loss(4)
  np.testing.assert_allclose(found["all"], total / 3)
  np.testing.assert_allclose(found["share"], share / 3)
  np.testing.assert_allclose(found["trigger"], of_trigger / share, atol=1e-12)
  assert (found["trigger"] == 0) == (copy == 1.0)


def test_rows_begin_with_the_start_and_count_from_the_third_symbol():
  data = BackcopyData(batch_size=2, seq_len=16, num_symbols=12)
  batch = next(iter(data.build("validation", seed=0, repeat=False)))
  assert (batch["tokens"][:, 0] == data.start).all() and data.vocab_size == 13
  np.testing.assert_array_equal(batch["loss_weights"].sum(1), 14)
  trigger = data.task.trigger_V[batch["tokens"][:, 2:]]
  same = batch["targets"][:, 2:] == batch["tokens"][:, 1:-1]
  assert same[trigger].all() and len(data.characters) == 12
  nontrigger = ~np.append(data.task.trigger_V, True)[batch["tokens"]]
  assert data.task.transition_VV[:, ~data.task.trigger_V].sum(1).min() > 0 and nontrigger.any()


def test_too_many_triggers_and_too_few_characters_are_refused():
  with pytest.raises(ConfigError, match="one symbol at least must be no trigger"):
    BackcopyData(batch_size=1, num_symbols=3, num_triggers=3)
  with pytest.raises(ConfigError, match="fewer than num_symbols = 5000"):
    _ = BackcopyData(batch_size=1, num_symbols=5000).task
