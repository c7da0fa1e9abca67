"""Absolute positions of the masked-diffusion model: without them a permuted row is a permuted answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError, build
from jaxlm.models.masked_diffusion import MaskedDiffusionConfig

SMALL = dict(vocab_size=12, d_model=16, num_layers=1, num_heads=2, d_cond=8, mlp=dict(d_ff=16))


def answers(**fields):
  """(logits of a row, those of the row turned by one place), with every parameter random."""
  model = build(MaskedDiffusionConfig, SMALL | dict(position=dict(kind="none")) | fields).build()
  tokens = jnp.arange(8)[None] % 7
  params = model.init(jax.random.key(0), tokens, jnp.ones(1))["params"]
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  params = tree.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])
  run = jax.jit(lambda t: model.apply({"params": params}, t, jnp.ones(1)))
  return np.asarray(run(tokens)), np.asarray(run(jnp.roll(tokens, 1, axis=1)))


def test_a_learned_table_tells_places_apart():
  row, turned = answers()
  np.testing.assert_allclose(np.roll(row, 1, axis=1), turned, atol=1e-4)
  row, turned = answers(absolute=dict(kind="learned", max_len=8))
  assert np.abs(np.roll(row, 1, axis=1) - turned).max() > 0.1


def test_the_table_bounds_the_length():
  cfg = build(MaskedDiffusionConfig, SMALL | dict(absolute=dict(kind="learned", max_len=4)))
  assert cfg.max_len == 4
  with pytest.raises(ConfigError, match="max_len = 4"):
    jax.eval_shape(cfg.build().init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32), jnp.ones(1))
