"""Declaring a parameter: name, shape and logical axes on one line."""

import flax.linen as nn
import jax.numpy as jnp

normal = nn.initializers.normal
standard = normal(0.02)
zeros = nn.initializers.zeros_init()
ones = nn.initializers.ones_init()


def weights(module: nn.Module, dtype=None, *, init=standard, param_dtype=jnp.float32):
  """w(name, shape, axes, init=...): declares a float32 parameter, returns it cast to `dtype`.

  axes: one logical axis name (or None) per dimension, resolved by the rule table of `jaxlm.parallel`.
  dtype None returns the parameter as stored.
  """

  def w(name, shape, axes, init=init):
    value = module.param(name, nn.with_logical_partitioning(init, axes), shape, param_dtype)
    return value if dtype is None else value.astype(dtype)

  return w
