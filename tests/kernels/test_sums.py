"""A sum of products is that sum, whatever axes of size 1 its operands have."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.sums import sum_of_products


@pytest.mark.parametrize(
  "shape, axis",
  [
    ((2, 3, 5), -1),
    ((1, 3, 5), 1),
    ((1, 1, 5), (0, 1)),
    ((2, 1, 5), 1),
    ((2, 3, 1), (0, 2)),
    ((1, 1, 1), 0),
  ],
)
def test_is_the_sum_of_the_products(shape, axis):
  a, b = (jnp.asarray(np.random.default_rng(i).standard_normal(shape), jnp.float32) for i in (0, 1))
  chex.assert_trees_all_close(sum_of_products(a, b, axis), jnp.sum(a * b, axis), atol=1e-6)

  def of(fn):
    return jax.grad(lambda a: jnp.sum(jnp.sin(fn(a))))(a)

  chex.assert_trees_all_close(
    of(lambda a: sum_of_products(a, b, axis)), of(lambda a: jnp.sum(a * b, axis)), atol=1e-6
  )
