"""Absolute positions added to the embedding: sinusoids and a learned table.

Axes: B batch, T time, D d_model, M positions in the table.
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.layers.positions import Position
from jaxlm.layers.weights import weights
from jaxlm.parameter import TABLE
from jaxlm.ranges import Count, Range


def sinusoids(positions, d_model: int, base: float = 10000.0):
  """PE[m, 2j] = sin(m base^(-2j/D)), PE[m, 2j+1] = cos(same). positions: any shape; adds an axis D,
  float32.
  """
  frequency = jnp.asarray(
    base ** (-np.arange(0, d_model, 2, dtype=np.float64) / d_model), jnp.float32
  )
  angle = positions[..., None].astype(jnp.float32) * frequency.reshape(
    (1,) * positions.ndim + (-1,)
  )
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(*positions.shape, -1)[
    ..., :d_model
  ]


@dataclasses.dataclass(frozen=True)
@checked
class Sinusoidal(Position):
  """x + PE, the fixed table of the first Transformer (docs/specs/carope.md section 7)."""

  by_position = True

  base: Annotated[float, Range(1, open_low=True)] = 10000.0

  def add(self, module, x_BTD, context):
    return x_BTD + sinusoids(context.positions_BT, x_BTD.shape[-1], self.base).astype(x_BTD.dtype)


@dataclasses.dataclass(frozen=True)
@checked
class Learned(Position):
  """x + E[m] with a learned (max_len, d_model) table, which has nothing to say beyond max_len."""

  by_position = True

  max_len: Count

  @property
  def max_positions(self):
    return self.max_len

  def add(self, module, x_BTD, context):
    T = x_BTD.shape[1]
    if T > self.max_len:
      raise ConfigError(
        f"a sequence of {T} tokens, but the learned position table has max_len = {self.max_len} rows; "
        "shorten the sequence or choose a relative position encoding"
      )
    table_MD = weights(module, x_BTD.dtype)(
      "embedding", (self.max_len, x_BTD.shape[-1]), (None, "embed"), role=TABLE
    )
    return x_BTD + jnp.take(table_MD, context.positions_BT, axis=0, mode="clip")
