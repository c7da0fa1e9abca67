import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.newton_schulz import LANGUAGE, coefficients, newton_schulz

SHAPES = [(3, 8, 8), (2, 6, 12), (2, 3, 12, 6), (1, 1)]


def matrix(shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
  "kind, steps", [("language", 5), ("views", 3), ("views", 0), ("language", 7)]
)
def test_matches_the_reference_with_gradients(shape, kind, steps):
  g, ct = matrix(shape), matrix(shape, 1)

  def run(impl):
    return jax.vjp(lambda g: newton_schulz(g, coefficients(kind, steps), implementation=impl), g)

  (got, got_vjp), (want, want_vjp) = run("xla"), run("reference")
  # float32, products of up to 7 steps; the gradient has one more division by |G|.
  np.testing.assert_allclose(got, want, atol=2e-5 * float(jnp.abs(want).max()))
  np.testing.assert_allclose(
    got_vjp(ct)[0], want_vjp(ct)[0], atol=1e-4 * float(jnp.abs(want_vjp(ct)[0]).max()) + 1e-6
  )


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_zero_stays_zero_with_a_finite_gradient(implementation):
  g = (
    jnp.zeros((2, 4, 6)).at[1].set(matrix((4, 6)))
  )  # one zero matrix in a batch, as a padded chunk gives
  out, vjp = jax.vjp(lambda g: newton_schulz(g, implementation=implementation), g)
  (grad,) = vjp(jnp.ones_like(g))
  assert not out[0].any()
  assert bool(jnp.isfinite(grad).all())


def test_singular_values_end_near_one():
  values = jnp.linalg.svd(newton_schulz(matrix((4, 16, 16), 3)), compute_uv=False)
  assert (
    0.8 < float(values[:, :-2].min()) and float(values.max()) < 1.1
  )  # the smallest few need more steps


def test_zero_steps_divide_by_the_norm_only():
  g = matrix((2, 5, 7))
  want = g / jnp.linalg.norm(g, axis=(1, 2), keepdims=True)
  np.testing.assert_allclose(newton_schulz(g, coefficients("views", 0)), want, rtol=1e-5)


def test_bfloat16_stays_near_float32_and_returns_the_callers_dtype():
  g = matrix((2, 16, 16))
  low, full = newton_schulz(g, dtype="bfloat16"), newton_schulz(g)
  assert low.dtype == g.dtype
  error = jnp.linalg.norm(low - full) / jnp.linalg.norm(full)
  assert 0 < float(error) < 0.1  # bfloat16 really ran: spec 2.8 says 2-7 %


def test_wrong_requests_are_named():
  with pytest.raises(ValueError, match="-1"):
    coefficients("views", -1)
  with pytest.raises(ValueError, match="'language' or 'views'"):
    coefficients("polar")
  with pytest.raises(NotImplementedError, match="pallas"):
    newton_schulz(matrix((2, 2)), implementation="pallas")
  assert len(coefficients("language", 5)) == len(LANGUAGE)
