"""ALiBi: a fixed linear penalty on distance. Axes: N heads."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from jaxlm.kernels.attention import LinearBias
from jaxlm.layers.positions import Position


def alibi_slopes(num_heads: int) -> np.ndarray:
  """2^(-8h/H) for h = 1..H, H a power of two; otherwise those of the power of two below, then every
  second of twice as many (docs/specs/carope.md section 7). Float64 (num_heads,)."""

  def ladder(n):
    return 2.0 ** (-8.0 * np.arange(1, n + 1) / n)

  power = 2 ** int(math.log2(num_heads))
  return np.concatenate([ladder(power), ladder(2 * power)[::2][: num_heads - power]])


@dataclasses.dataclass(frozen=True)
class ALiBi(Position):
  """s_mn = q_m.k_n / sqrt(d) - slope_h (m - n)."""

  def bias(self, module, heads, query_info, key_info, shared):
    return LinearBias(jnp.asarray(alibi_slopes(heads.num_heads), jnp.float32))
