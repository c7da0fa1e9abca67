"""The starting point of networks that were defined with PyTorch's own initialisation, as the
insertion release's are.

  Linear: W, b ~ U(-1/sqrt(n), 1/sqrt(n)), n its number of inputs;  tables ~ N(0, 1);  norms 1 and 0

Ours start at N(0, 0.02^2), which suits widths near 768 and is far too quiet for those below 100:
attention is then flat, and layers take thousands of steps to be heard.
"""

import math
import zlib

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError

KEPT = (
  "scale",
  "bias",
  "w_mod",
  "b_mod",
  "slot_embedding",
)  # norms and what starts at zero stay as declared


def redraw(params, key, *, identical_layers: bool = False):
  """The same tree with new values. identical_layers: every block a copy of the first (the release's
  deep copies).

  Raises ConfigError for a parameter whose number of inputs is not known here.
  """

  def leaf(path, value):
    names = [str(p.key) for p in path]
    name, stacked = names[-1], "blocks" in names[:-1]
    if name in KEPT:
      return value
    here = jax.random.fold_in(key, zlib.crc32("/".join(names).encode()) & 0x7FFFFFFF)
    shape = value.shape[1:] if stacked and identical_layers else value.shape
    if name == "embedding":
      new = jax.random.normal(here, shape)
    else:
      bound = 1 / math.sqrt(_inputs(names, params, stacked))
      new = jax.random.uniform(here, shape, minval=-bound, maxval=bound)
    return jnp.broadcast_to(new, value.shape).astype(value.dtype)

  return jax.tree_util.tree_map_with_path(leaf, params)


def _inputs(names, params, stacked: bool) -> int:
  for name in names[:-1]:
    params = params[name]

  def shape(name):
    return params[name].shape[1:] if stacked else params[name].shape

  name = names[-1]
  if name in ("b_in", "b_gate", "b_out"):
    name = "w" + name[1:]
  if name in ("w_q", "w_k", "w_v", "w_in", "w_gate"):
    return shape(name)[0]
  if name == "w_o":
    return math.prod(shape(name)[:-1])
  if name == "w_out":  # of an MLP (F, D); a head's is stored (V, D)
    return shape(name)[-1] if names[-2] in ("head", "stop_head") else shape(name)[0]
  raise ConfigError(
    f"train.init = 'torch': nothing is known about parameter {'/'.join(names)}; use train.init = 'own'"
  )
