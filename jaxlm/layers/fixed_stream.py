"""A stream that no input changes and that passes through the same layers: rows at the end of the
batch, from which `stream_attention` takes its queries and keys (arXiv 2510.11602, section 3).

Axes: B batch, T time, D d_model.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.ranges import Natural, NonNegative, Seed


@dataclasses.dataclass(frozen=True)
@checked
class FixedStreamConfig:
  """source: "random": X^0 ~ N(0, std^2), drawn once from `seed`; "text": X^0 = embedding of `tokens`,
  repeated up to the length of the row. One row of the batch on each device is the stream."""

  source: Literal["random", "text"] = "random"
  tokens: tuple[Natural, ...] = ()
  std: NonNegative = 0.02
  seed: Seed = 0

  def __post_init__(self):
    if (self.source == "text") != bool(self.tokens):
      raise ConfigError(
        f"fixed_stream: source = {self.source!r} and {len(self.tokens)} tokens; give tokens for 'text' "
        "and none for 'random'"
      )

  def append(self, tokens_BT, segment_ids_BT, positions_BT):
    """(tokens, segment ids, positions) with the stream's rows behind the batch's; their number."""
    rows, T = num_rows(), tokens_BT.shape[1]
    given = jnp.resize(jnp.asarray(self.tokens or (0,), tokens_BT.dtype), (T,))

    def with_row(x_BT, row_T):
      new = jnp.broadcast_to(row_T.astype(x_BT.dtype)[None], (rows, T))
      return jnp.concatenate([x_BT, new], axis=0)

    return (
      with_row(tokens_BT, given),
      with_row(segment_ids_BT, jnp.ones(T)),
      with_row(positions_BT, jnp.arange(T)),
      rows,
    )

  def set(self, x_BTD, rows: int):
    """The embedded batch with the stream's first states in its last `rows` rows."""
    if self.source == "text":
      return x_BTD
    eps_TD = self.std * jax.random.normal(jax.random.key(self.seed), x_BTD.shape[1:])
    new = jnp.broadcast_to(eps_TD.astype(x_BTD.dtype)[None], (rows, *x_BTD.shape[1:]))
    return jnp.concatenate([x_BTD[:-rows], new], axis=0)


def num_rows() -> int:
  """1, or as many as the batch is split over, so that it can still be split evenly."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(size for name, size in mesh.shape.items() if name in ("data", "fsdp"))
