"""Attribution by attention weights, and by chance as the reference. Axes: B batch, T time, N heads."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.attribution.base import Method
from jaxlm.config import ConfigError


@dataclasses.dataclass(frozen=True)
class LastAttention(Method):
  """The mean over heads of the last layer's attention weights of the query at the question."""

  signed: ClassVar[bool] = False

  def __call__(self, question, key) -> np.ndarray:
    return np.asarray(question.attention()[-1][:, :, question.at].mean(axis=1))


@dataclasses.dataclass(frozen=True)
class Rollout(Method):
  """The row of the question in the product over layers of (A + I) / 2, A the mean over heads
  (Abnar and Zuidema 2020)."""

  signed: ClassVar[bool] = False

  def __call__(self, question, key) -> np.ndarray:
    total = None
    for p_BNTS in question.attention():
      if p_BNTS.shape[-2] != p_BNTS.shape[-1]:
        raise ConfigError(
          f"rollout is a product of square matrices, and {type(question.config).__name__} attends from a "
          "decoder to an encoder; use the method 'attention'"
        )
      mean_BTT = p_BNTS.mean(axis=1)
      mixed = 0.5 * (mean_BTT + jnp.eye(mean_BTT.shape[-1])[None])
      total = mixed if total is None else jnp.einsum("btu,bus->bts", mixed, total)
    return np.asarray(total[:, question.at])


@dataclasses.dataclass(frozen=True)
class Chance(Method):
  """Uniform numbers."""

  signed: ClassVar[bool] = False

  def __call__(self, question, key) -> np.ndarray:
    return np.asarray(jax.random.uniform(key, np.shape(question.tokens_BT)))
