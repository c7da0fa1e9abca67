"""What the backward pass of recomputed work keeps, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from jaxlm.kernels.recomputed import recomputed_on_cpu
from jaxlm.layers.linear import linear
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import layer_norm, rms_norm

X_BTD = jax.random.normal(jax.random.key(0), (2, 8, 12))


def kept(fn, *args) -> list[tuple[int, ...]]:
  """Shapes of the arrays that the backward pass is given."""
  return sorted(x.shape for x in jax.tree.leaves(jax.vjp(fn, *args)[1]))


def test_it_keeps_its_arguments_alone_and_has_the_same_gradient():
  def fn(x, power):
    return jnp.tanh(jnp.sin(x) ** power)

  again = recomputed_on_cpu(fn, static_argnums=(1,))
  assert len(kept(lambda x: fn(x, 3), X_BTD)) > 1
  assert kept(lambda x: again(x, 3), X_BTD) == [X_BTD.shape]
  got, want = (jax.grad(lambda x, f=f: f(x, 3).sum())(X_BTD) for f in (again, fn))
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_a_norm_keeps_what_it_normalises(norm):
  weights = [jnp.ones(12), jnp.zeros(12)][: 1 if norm is rms_norm else 2]
  large = [s for s in kept(lambda x, *w: norm(x, *w, 1e-5), X_BTD, *weights) if len(s) > 1]
  assert large == [X_BTD.shape]


def test_a_product_keeps_its_arguments_as_they_are_given():
  w = jnp.ones((12, 4, 8))
  assert kept(lambda x: linear(x, w), X_BTD) == [w.shape]
  both = kept(lambda w, v: linear(X_BTD, w) + linear(X_BTD, v), w, w)
  assert set(both) == {X_BTD.shape}


@pytest.mark.parametrize("gated", [False, True])
def test_an_mlp_keeps_what_its_activation_reads(gated):
  module = MLPConfig(d_ff=32, gated=gated).build(12, "float32")
  variables = module.init(jax.random.key(1), X_BTD)
  shapes = kept(lambda v, x: module.apply(v, x), variables, X_BTD)
  assert shapes.count((2, 8, 32)) == 1 + gated
  assert (16, 32) not in shapes  # the activation's result, as the product reads it


def test_for_another_platform_it_is_the_function_itself():
  mesh = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice("TPU v5e", 1, "tpu"))
  again = recomputed_on_cpu(jnp.sin)

  def program():
    return str(jax.make_jaxpr(again)(X_BTD))

  here = program()
  with jax.sharding.use_abstract_mesh(mesh):
    there = program()
  assert here != there
  assert there == str(jax.make_jaxpr(jnp.sin)(X_BTD))
