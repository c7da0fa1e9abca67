"""Normalisation and feed-forward layers against their formulas in float64."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import LayerNormConfig, RMSNormConfig, layer_norm, rms_norm

X = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 8))) * 3 + 1


def run(module, params, x=X):
  return np.asarray(module.apply({"params": params}, jnp.asarray(x)))


def test_rms_norm_divides_by_the_root_mean_square():
  scale = np.linspace(-1, 2, 8)
  want = X / np.sqrt(np.mean(X.astype(np.float64) ** 2, -1, keepdims=True) + 0.1) * scale
  np.testing.assert_allclose(
    run(RMSNormConfig(eps=0.1).build("float32"), {"scale": jnp.asarray(scale)}), want, rtol=1e-5
  )


def test_a_unit_offset_stores_the_scale_minus_one():
  scale = jnp.linspace(-1, 2, 8)
  np.testing.assert_allclose(
    run(RMSNormConfig(unit_offset=True).build("float32"), {"scale": scale - 1}),
    run(RMSNormConfig().build("float32"), {"scale": scale}),
    atol=1e-6,
  )
  fresh = nn.unbox(
    RMSNormConfig(unit_offset=True).build("float32").init(jax.random.key(0), jnp.asarray(X))
  )
  assert not np.any(fresh["params"]["scale"])


def test_layer_norm_keeps_its_precision_far_from_zero():
  far = X.astype(np.float64) + 1000
  want = (far - far.mean(-1, keepdims=True)) / np.sqrt(far.var(-1, keepdims=True) + 1e-5) * 2 + 0.5
  params = {"scale": jnp.full(8, 2.0), "bias": jnp.full(8, 0.5)}
  np.testing.assert_allclose(
    run(LayerNormConfig().build("float32"), params, far.astype(np.float32)), want, atol=2e-3
  )


def test_norms_of_bfloat16_are_computed_in_float32():
  x = jnp.asarray(X, jnp.bfloat16)
  y = RMSNormConfig().build("bfloat16").apply({"params": {"scale": jnp.ones(8)}}, x)
  assert y.dtype == jnp.bfloat16
  want = run(RMSNormConfig().build("float32"), {"scale": jnp.ones(8)}, x.astype(jnp.float32))
  np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))


ERF = np.vectorize(math.erf)
FORMULAS = {
  "gelu": lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2))),
  "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
  "silu": lambda x: x / (1 + np.exp(-x)),
  "relu2": lambda x: np.maximum(x, 0) ** 2,
}


@pytest.mark.parametrize("activation", FORMULAS)
@pytest.mark.parametrize("gated", [False, True])
def test_mlp_is_its_formula(activation, gated):
  module = MLPConfig(5, activation, gated, use_bias=True).build(8, "float32")
  params = nn.unbox(module.init(jax.random.key(1), jnp.asarray(X)))["params"]
  params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
  w = {k: np.asarray(v, np.float64) for k, v in params.items()}
  act, up = FORMULAS[activation], X @ w["w_in"] + w["b_in"]
  inner = act(X @ w["w_gate"] + w["b_gate"]) * up if gated else act(up)
  np.testing.assert_allclose(
    run(module, params), inner @ w["w_out"] + w["b_out"], rtol=1e-4, atol=1e-3
  )


@pytest.mark.parametrize(
  "shape, groups", [((1, 5, 8), 1), ((1, 1, 8), 1), ((1, 5, 2, 8), 2), ((3, 1, 2, 8), 2)]
)
def test_axes_of_size_1_and_scales_of_groups_change_nothing(shape, groups):
  x, g = (jnp.asarray(np.random.default_rng(i).standard_normal(shape), jnp.float32) for i in (0, 1))
  scale = (
    jnp.linspace(-1, 2, groups * 8).reshape(groups, 8) if groups > 1 else jnp.linspace(-1, 2, 8)
  )

  def rms(x, scale):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-3) * jnp.broadcast_to(scale, shape)

  def layer(x, scale):
    return rms(x - jnp.mean(x, -1, keepdims=True), scale)

  def run(fn):
    return jax.value_and_grad(lambda x, scale: jnp.sum(g * fn(x, scale)), argnums=(0, 1))(x, scale)

  chex.assert_trees_all_close(run(lambda x, s: rms_norm(x, s, 1e-3)), run(rms), atol=1e-5)
  chex.assert_trees_all_close(run(lambda x, s: layer_norm(x, s, None, 1e-3)), run(layer), atol=1e-5)
