"""Compaction: every slot knows its position and every position its slot."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.compact import compact, gather, scatter, upsample


def keeps(shape, density, seed):
  return jnp.asarray(np.random.default_rng(seed).random(shape) < density)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("capacity", [1, 5, 13, 20])
def test_fast_form_equals_the_stable_sort(density, capacity):
  keep = keeps((4, 13), density, seed=capacity)
  chex.assert_trees_all_equal(
    compact(keep, capacity), compact(keep, capacity, implementation="reference")
  )


def test_kept_items_stay_in_order_and_come_back_to_their_places():
  keep = keeps((3, 40), 0.4, seed=1)
  x = jax.random.normal(jax.random.key(0), (3, 40, 2, 5))
  c = compact(keep, 40)
  for row in range(3):
    want = np.asarray(x[row])[np.asarray(keep[row])]
    np.testing.assert_array_equal(gather(x, c)[row, : len(want)], want)
    np.testing.assert_array_equal(gather(x, c)[row, len(want) :], 0)
  np.testing.assert_array_equal(scatter(gather(x, c), c), jnp.where(keep[..., None, None], x, 0))


def test_overflow_is_flagged_per_row_and_drops_the_last_items():
  keep = jnp.asarray([[1, 1, 0, 1], [0, 0, 1, 0]], bool)
  c = compact(keep, 2)
  assert c.overflow_B.tolist() == [True, False] and c.count_B.tolist() == [3, 1]
  assert c.source_BC.tolist() == [[0, 1], [2, 0]] and c.valid_BC.tolist() == [
    [True, True],
    [True, False],
  ]
  assert c.kept_BT.tolist() == [[True, True, False, False], [False, False, True, False]]
  assert c.rank_BT.tolist() == [[0, 1, 1, 1], [-1, -1, 0, 0]]


@pytest.mark.parametrize("capacity", [4, 16])
def test_gradients_equal_those_of_the_reference(capacity):
  keep = keeps((2, 16), 0.5, seed=3)
  c = compact(keep, capacity)
  kx, ky, kg = jax.random.split(jax.random.key(1), 3)
  x, y = jax.random.normal(kx, (2, 16, 3)), jax.random.normal(ky, (2, capacity, 3))
  g = jax.random.normal(kg, (2, 16, 3))
  for fn, argument, cotangent in [(gather, x, y), (scatter, y, g), (upsample, y, g)]:
    out, vjp = jax.vjp(lambda a: fn(a, c), argument)
    want, want_vjp = jax.vjp(lambda a: fn(a, c, implementation="reference"), argument)
    chex.assert_trees_all_equal(out, want)
    # Summation order only.
    chex.assert_trees_all_close(vjp(cotangent), want_vjp(cotangent), atol=1e-6)


def test_positions_before_the_first_kept_item_read_zero():
  c = compact(jnp.asarray([[0, 0, 1, 0]], bool), 3)
  np.testing.assert_array_equal(upsample(jnp.full((1, 3), 7.0), c), [[0, 0, 7, 7]])


def test_a_capacity_of_zero_is_refused():
  with pytest.raises(ValueError, match="capacity 0"):
    compact(jnp.ones((1, 4), bool), 0)


def test_a_mask_that_is_not_boolean_is_refused():
  with pytest.raises(TypeError, match="int32"):
    compact(jnp.ones((1, 4), jnp.int32), 2)
