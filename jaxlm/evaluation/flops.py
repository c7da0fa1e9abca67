"""Model FLOPs: what the mathematics needs, whatever the program does (no rematerialisation, no
padding).

Axes: T time, N heads, H head_dim.

    training FLOPs / token = 3 * (2 * matmul parameters + sum over attention layers of 4 N H keys)

a multiply and an add count as two; backward is twice forward. `keys` is T, or the window if it is
shorter: as usual (PaLM, appendix B: 6 N + 12 L H Q T) the causal half of the score matrix is not
discounted.
"""

import flax.linen as nn
import jax
import numpy as np

from jaxlm.models.base import abstract_params
from jaxlm.models.products import dot_flops

#: Tables that are looked up and never multiplied. A tied embedding is multiplied once, as the head.
LOOKUPS = ("embedding", "relative_bias")


def parts_per_token(config, seq_len: int) -> dict[str, float]:
  """Forward FLOPs per token by part of the network. config: a model config with `build()`.

  Parts are the first names of the parameter tree (`blocks`, `head` ...), and `attention` for scores
  and values.
  """
  parts: dict[str, float] = {}
  tied = config.tie_embeddings
  for path, leaf in jax.tree.leaves_with_path(abstract_params(config), is_leaf=_is_box):
    names = [str(getattr(key, "key", key)) for key in path]
    axes = leaf.names if _is_box(leaf) else (None,) * leaf.ndim
    shape = (leaf.unbox() if _is_box(leaf) else leaf).shape
    matrix = sum(axis != "layers" for axis in axes) >= 2
    is_head = tied and names[0] == "embed"
    if matrix and (is_head or names[-1] not in LOOKUPS):
      part = "head" if is_head else names[0]
      parts[part] = parts.get(part, 0.0) + 2.0 * float(np.prod(shape))
  for mixer in config.mixers:
    if (heads := mixer.heads(config.d_model)) is not None:
      keys = min(seq_len, mixer.window or seq_len)
      parts["attention"] = (
        parts.get("attention", 0.0) + 4.0 * heads.num_heads * heads.head_dim * keys
      )
  return parts


def train_flops_per_token(config, seq_len: int) -> float:
  """Forward and backward FLOPs of one token in a sequence of seq_len."""
  return 3.0 * sum(parts_per_token(config, seq_len).values())


def traced_flops(config, batch) -> float:
  """Forward and backward FLOPs of one global batch, given by shapes: the products of the traced
  forward pass, three times.
  """
  params = nn.unbox(abstract_params(config))

  def run(params, batch):
    return config.build().apply({"params": params}, *config.inputs(batch))

  return 3.0 * dot_flops(run, params, batch)


def num_params(config) -> int:
  """Number of parameters."""
  return sum(
    int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nn.unbox(abstract_params(config)))
  )


def _is_box(leaf) -> bool:
  return isinstance(leaf, nn.meta.AxisMetadata)
