"""Declaring a parameter: name, shape, logical axes and role on one line."""

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.parameter import declared

normal = nn.initializers.normal
standard = normal(0.02)
zeros = nn.initializers.zeros_init()
ones = nn.initializers.ones_init()


def weights(module: nn.Module, dtype=None, *, init=standard, param_dtype=jnp.float32):
  """w(name, shape, axes, init=..., role=...): declares a float32 parameter, returns it cast to
  `dtype`.

  axes: one logical axis name (or None) per dimension, resolved by the rule table of
  `jaxlm.parallel`.
  role: of jaxlm.parameter, what the optimiser does with it. Needed where the default is wrong: by
  default it is a matrix if it has two or more dimensions and one of them is `embed`, and spared
  from decay otherwise. dtype None returns the parameter as stored.
  """

  def w(name, shape, axes, init=init, role=None):
    value = jnp.asarray(
      module.param(name, declared(init, axes, role), shape, param_dtype)
    )  # NumPy arrays too
    return value if dtype is None else value.astype(dtype)

  return w
