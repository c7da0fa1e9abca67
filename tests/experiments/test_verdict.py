"""A claim is judged seed by seed, with an interval; one seed shows nothing."""

import math

import pytest

from jaxlm.experiments.table import Means
from jaxlm.experiments.verdict import Exact, ascending, interval, sentence, verdict


def judged(predicate, **rows):
  """rows: name -> value of column 'x' with seeds 0, 1, ...; None: not run with that seed."""
  by_seed = {}
  for row, values in rows.items():
    for seed, value in enumerate(values):
      if value is not None:
        by_seed.setdefault(seed, Means())[row, "x"] = value
  means = Means(
    {
      (row, "x"): sum(v for v in values if v is not None)
      / max(1, sum(v is not None for v in values))
      for row, values in rows.items()
    }
  )
  return verdict(predicate, by_seed, means)


def below(t):
  return t["b", "x"] - t["a", "x"]


def test_the_interval_is_students_of_the_paired_differences():
  # mean 2, standard deviation 1, t(0.975, 2) = 4.302653
  low, high = interval([1.0, 2.0, 3.0])
  assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
  assert interval([1.0, 1.0]) == (-math.inf, math.inf)


def test_a_small_paired_difference_is_shown_where_seeds_spread_far_more():
  found = judged(below, a=[1.0, 5.0, 9.0], b=[1.1, 5.11, 9.09])
  assert found["verdict"] == "shown" and found["mean"] == pytest.approx(0.1)
  assert judged(below, a=[1.1, 5.11, 9.09], b=[1.0, 5.0, 9.0])["verdict"] == "contradicted"
  assert judged(below, a=[1.0, 5.0, 9.0], b=[1.1, 4.9, 9.1])["verdict"] == "not shown"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_show_nothing_however_large_the_margin(seeds):
  assert (
    judged(below, a=[0.0] * seeds, b=[100.0 + i for i in range(seeds)])["verdict"] == "not shown"
  )
  assert (
    judged(lambda t: t["a", "x"] < t["b", "x"], a=[0.0] * seeds, b=[100.0] * seeds)["verdict"]
    == "not shown"
  )


def test_an_exact_claim_needs_no_seeds():
  assert judged(lambda t: Exact(t["a", "x"] == 1), a=[1.0])["verdict"] == "shown"
  assert judged(lambda t: Exact(t["a", "x"] == 2), a=[1.0])["verdict"] == "contradicted"


def test_only_seeds_that_all_rows_of_the_claim_have_are_compared():
  found = judged(below, a=[1.0, 2.0, 3.0, 0.0], b=[2.0, 3.1, 3.9, None])
  assert found["seeds"] == [0, 1, 2] and found["verdict"] == "shown"
  assert judged(below, a=[1.0, 2.0, 3.0], c=[1.0])["verdict"] == "not measured"


def test_answers_without_margins_are_counted():
  def said(*b):
    return judged(lambda t: t["a", "x"] < t["b", "x"], a=[1.0] * len(b), b=b)

  assert said(*[2.0] * 5)["verdict"] == "not shown"  # the sign test: 2 x 0.5^5 = 0.06
  assert said(*[2.0] * 6)["verdict"] == "shown"
  assert said(*[2.0] * 6, 0.0)["verdict"] == "not shown"
  assert said(*[0.0] * 6)["verdict"] == "contradicted"
  assert sentence(said(2.0, 3.0, 0.0)) == "**not shown** (holds in 2 of 3 seeds)"


def test_the_margin_of_an_order_is_its_least_step():
  assert ascending(1.0, 3.0, 4.5) == 1.5
  assert ascending(1.0, 3.0, 2.0) == -1.0


def test_rows_that_cannot_be_compared_say_why():
  found = judged(lambda t: (None, "b has not converged"), a=[1.0])
  assert sentence(found) == "**not comparable** (b has not converged)"


def test_the_sentence_gives_margin_interval_and_seeds():
  assert sentence(judged(below, a=[1.0, 5.0, 9.0], b=[2.0, 7.0, 12.0])) == (
    "**not shown** (margin +2, 95 % interval -0.484 to +4.48, 3 seeds)"
  )
  assert sentence(judged(below, a=[1.0], b=[2.0])) == "**not shown** (margin +1, 1 seed)"


def test_a_diverged_seed_shows_nothing():
  assert judged(below, a=[1.0, 2.0, 3.0], b=[9.0, math.inf, 9.0])["verdict"] == "not shown"
