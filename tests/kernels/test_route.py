"""The router's cosine, its ties, its first tokens and its gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.route import route


def inputs(batch=2, length=9, width=6):
  keys = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(keys[0], (batch, length, width))
  w = [jnp.eye(width) + 0.3 * jax.random.normal(k, (width, width)) for k in keys[1:3]]
  first = jnp.zeros((batch, length), bool).at[:, 0].set(True).at[0, 4].set(True)
  valid = jnp.ones((batch, length), bool).at[1, 6:].set(False)
  return x, *w, first, valid


def test_equals_the_normalised_definition_with_gradients():
  x, w_q, w_k, first, valid = inputs()

  def run(implementation):
    def loss(x, w_q, w_k):
      r = route(x, w_q, w_k, first_BT=first, valid_BT=valid, implementation=implementation)
      weights = jnp.arange(1.0, 19.0).reshape(2, 9)
      return jnp.sum(weights * r.p_BT) + jnp.sum(weights[::-1] * r.confidence_BT), r

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, w_q, w_k)

  chex.assert_trees_all_close(
    run(None), run("reference"), atol=2e-5
  )  # float32 sums of tens of terms


def test_first_tokens_are_certain_and_constant():
  x, w_q, w_k, first, valid = inputs()

  def p(x):
    return route(x, w_q, w_k, first_BT=first, valid_BT=valid).p_BT

  np.testing.assert_array_equal(p(x)[first], 1.0)
  _, vjp = jax.vjp(p, x)
  np.testing.assert_array_equal(vjp(first.astype(jnp.float32))[0], 0.0)


def test_a_tie_is_no_boundary_and_opposites_are_one():
  x = jnp.asarray([[[1.0, 0], [0, 1], [0, 1], [0, -2]]])  # orthogonal, equal, opposite
  r = route(
    x, jnp.eye(2), jnp.eye(2), first_BT=jnp.zeros((1, 4), bool), valid_BT=jnp.ones((1, 4), bool)
  )
  np.testing.assert_array_equal(r.p_BT[0, 1:], [0.5, 0.0, 1.0])
  np.testing.assert_array_equal(r.boundary_BT[0, 1:], [False, False, True])


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_rows_of_zeros_have_finite_gradients_and_no_boundary(implementation):
  x, w_q, w_k, first, valid = inputs()
  x = x.at[0, 2:4].set(0)

  def p(x):
    return route(x, w_q, w_k, first_BT=first, valid_BT=valid, implementation=implementation).p_BT

  assert bool(jnp.isfinite(jax.grad(lambda x: p(x).sum())(x)).all())
  np.testing.assert_array_equal(p(x)[0, 2:4], 0.5)


def test_a_stream_goes_on_from_the_previous_row():
  x, w_q, w_k, _, _ = inputs()
  none, all_ = jnp.zeros((2, 9), bool), jnp.ones((2, 9), bool)
  whole = route(x, w_q, w_k, first_BT=none, valid_BT=all_)
  rest = route(x[:, 5:], w_q, w_k, first_BT=none[:, 5:], valid_BT=all_[:, 5:], previous_BD=x[:, 4])
  chex.assert_trees_all_close(jax.tree.map(lambda v: v[:, 5:], whole), rest, atol=1e-6)


def test_boundaries_are_masked_but_the_confidence_is_not():
  x, w_q, w_k, first, valid = inputs()
  r = route(x, w_q, w_k, first_BT=first, valid_BT=valid)
  assert not bool((r.boundary_BT & ~valid).any())
  np.testing.assert_array_equal(r.confidence_BT, jnp.maximum(r.p_BT, 1 - r.p_BT))
