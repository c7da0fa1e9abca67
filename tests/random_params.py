"""Random parameters for tests in which any values do: drawing them compiles nothing, where a
model's initialisation compiles for seconds.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models.base import abstract_params


def filled(shapes, seed: int = 0):
  """The tree of `shapes` (arrays or `jax.ShapeDtypeStruct`s, boxed or not) with random values.

  Leaves named `scale` are 1 + 0.1 n, other vectors 0.1 n, the rest n / sqrt(size of the last axis
  but one); n is standard normal.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    n = rng.standard_normal(leaf.shape)
    if getattr(path[-1], "key", None) == "scale":
      n = 1 + 0.1 * n
    else:
      n *= 0.1 if leaf.ndim < 2 else leaf.shape[-2] ** -0.5
    return jnp.asarray(n, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes))


def random_params(cfg, seed: int = 0):
  """Parameters of a model config."""
  return filled(abstract_params(cfg), seed)
