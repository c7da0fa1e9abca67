"""Schedules against values computed by hand."""

import math

import numpy as np
import pytest

from jaxlm.config import ConfigError, build
from jaxlm.training.schedules import Constant, Cosine, InverseSqrt, Linear, WarmupStableDecay


def factors(schedule, steps, num_steps):
  return [float(schedule.factor(np.int32(step), num_steps)) for step in steps]


def test_warmup_counts_from_one_and_cosine_ends_at_the_final_fraction():
  # lr(step) = max (step + 1) / warmup, then min + (1 + cos(pi (step - warmup) / (max - warmup))) /
  # 2 (max - min).
  schedule = Cosine(warmup_steps=4, final_fraction=0.1)
  want = [
    0.25,
    0.5,
    0.75,
    1.0,
    1.0,
    0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 3 / 12)),
    0.55,
    0.1,
    0.1,
  ]
  np.testing.assert_allclose(factors(schedule, [0, 1, 2, 3, 4, 7, 10, 16, 20], 16), want, rtol=1e-6)


def test_linear_falls_in_equal_steps():
  np.testing.assert_allclose(
    factors(Linear(2, final_fraction=0.2), [0, 1, 2, 6, 10], 10), [0.5, 1, 1, 0.6, 0.2], rtol=1e-6
  )


@pytest.mark.parametrize("decay, middle", [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_warmup_stable_decay_holds_until_the_last_fifth(decay, middle):
  schedule = WarmupStableDecay(2, decay_fraction=0.2, decay=decay)
  np.testing.assert_allclose(
    factors(schedule, [1, 2, 50, 80, 90, 100], 100), [1, 1, 1, 1, middle, 0], atol=1e-6
  )


def test_inverse_sqrt_meets_its_warmup():
  np.testing.assert_allclose(
    factors(InverseSqrt(100), [49, 99, 399, 9999], 1), [0.5, 1.0, 0.5, 0.1], rtol=1e-6
  )


def test_constant_needs_no_number_of_steps():
  assert factors(Constant(2), [0, 1, 1000], 1) == [0.5, 1.0, 1.0]
  assert (
    not Constant().needs_num_steps
    and not InverseSqrt().needs_num_steps
    and Cosine().needs_num_steps
  )


def test_a_fraction_outside_0_to_1_is_refused():
  with pytest.raises(ConfigError, match="final_fraction = 1.5"):
    build(Cosine, {"final_fraction": 1.5})
