"""The product of activations with a weight.

Axes: B batch, T time; the others belong to the caller.
"""

import math

import jax
import jax.numpy as jnp

from jaxlm.kernels.platform import target_platform
from jaxlm.kernels.recomputed import recomputed_on_cpu


def linear(x_BT, w, *, contract: int = 1):
  """y[b, t, out...] = sum over x's last `contract` axes, which are w's first. In the arguments'
  dtype.

  x: (B, T, in...), w: (in..., out...). On one CPU batch and time are merged first: its compiler
  multiplies a matrix 1.2 to 1.8 times faster than a stack of matrices (bench/RESULTS.md, last
  table). On a mesh the axes stay apart, sharded.
  """
  if target_platform() != "cpu" or jax.sharding.get_abstract_mesh().size > 1:
    return jnp.tensordot(x_BT, w, contract)
  return _merged(x_BT, w, contract)


@recomputed_on_cpu(static_argnums=(2,))
def _merged(x_BT, w, contract: int):
  lead, out = x_BT.shape[:-contract], w.shape[contract:]
  size = math.prod(w.shape[:contract])
  return jnp.dot(x_BT.reshape(-1, size), w.reshape(size, -1)).reshape(*lead, *out)
