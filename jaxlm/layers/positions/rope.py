"""RoPE and its extensions to longer sequences: interpolation, NTK, YaRN, Llama 3.

Axes: B batch, T time, N heads, K kv heads, H head_dim, P rotated pairs.
"""

import dataclasses
import math
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np

from jaxlm.config import Kinds, checked
from jaxlm.kernels.phase import rotate
from jaxlm.layers.positions import Encoded, Position, check_even
from jaxlm.ranges import Count, Positive, Range

SCALINGS = Kinds(
  "RoPE scaling",
  {
    "interpolation": "jaxlm.layers.positions.rope:Interpolation",
    "ntk": "jaxlm.layers.positions.rope:NTK",
    "yarn": "jaxlm.layers.positions.rope:YaRN",
    "llama3": "jaxlm.layers.positions.rope:Llama3",
  },
)


def ladder(theta: float, rotary_dim: int) -> np.ndarray:
  """theta_i = theta^(-2i/r), i = 0 .. r/2 - 1. Float64 (P,)."""
  return theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


@dataclasses.dataclass(frozen=True)
@checked
class Interpolation:
  """theta_i / s: positions squeezed into the trained range (PI)."""

  factor: Positive

  def __call__(self, theta: float, rotary_dim: int):
    return ladder(theta, rotary_dim) / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
@checked
class NTK:
  """theta' = theta s^(r / (r - 2)): the fastest pair unchanged, the slowest divided by s."""

  factor: Positive

  def __call__(self, theta: float, rotary_dim: int):
    return ladder(theta * self.factor ** (rotary_dim / max(rotary_dim - 2, 1)), rotary_dim), 1.0


@dataclasses.dataclass(frozen=True)
@checked
class YaRN:
  """theta'_i = (1 - g_i) theta_i / s + g_i theta_i; cos and sin times the attention factor.

  g_i = 1 - clip((i - lo) / (hi - lo), 0, 1), lo and hi the pairs that turn beta_fast and beta_slow
  times within original_len (docs/specs/carope.md section 7). attention_factor: default 0.1 ln(s) +
  1. truncate: lo, hi are integers.
  """

  factor: Positive
  original_len: Count
  beta_fast: Positive = 32.0
  beta_slow: Positive = 1.0
  attention_factor: Positive | None = None
  truncate: bool = True

  def bounds(self, theta: float, rotary_dim: int) -> tuple[float, float]:
    """(lo, hi) of the ramp; hi is moved by 0.001 where they coincide."""

    def pair(turns):
      return (
        rotary_dim * math.log(self.original_len / (turns * 2 * math.pi)) / (2 * math.log(theta))
      )

    lo, hi = pair(self.beta_fast), pair(self.beta_slow)
    if self.truncate:
      lo, hi = math.floor(lo), math.ceil(hi)
    lo, hi = max(lo, 0), min(hi, rotary_dim - 1)
    return lo, hi + 0.001 if lo == hi else hi

  def __call__(self, theta: float, rotary_dim: int):
    lo, hi = self.bounds(theta, rotary_dim)
    keep_P = 1 - np.clip((np.arange(rotary_dim // 2) - lo) / (hi - lo), 0, 1)
    theta_P = ladder(theta, rotary_dim)
    default = 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0
    attention_factor = default if self.attention_factor is None else self.attention_factor
    return (1 - keep_P) * theta_P / self.factor + keep_P * theta_P, attention_factor


@dataclasses.dataclass(frozen=True)
@checked
class Llama3:
  """Wavelengths above original_len / low_freq_factor are stretched by s, those below original_len /
  high_freq_factor kept, linear in original_len / wavelength between (Llama 3.1)."""

  factor: Positive
  original_len: Count
  low_freq_factor: Positive = 1.0
  high_freq_factor: Positive = 4.0

  def __call__(self, theta: float, rotary_dim: int):
    theta_P = ladder(theta, rotary_dim)
    turns_P = self.original_len * theta_P / (2 * math.pi)
    keep_P = np.clip(
      (turns_P - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1
    )
    return (1 - keep_P) * theta_P / self.factor + keep_P * theta_P, 1.0


@dataclasses.dataclass(frozen=True)
@checked
class RoPE(Position):
  """q and k turned by phi_i(m) = m theta_i (docs/specs/carope.md section 1).

  rotary_dim: channels that turn, the first of each head; None = all. layout: which channels form a
  pair.
  scaling: stretch for longer sequences, on a model trained without it or fine-tuned with it.
  """

  by_position = True

  theta: Annotated[float, Range(1, open_low=True)] = 10000.0
  rotary_dim: Annotated[int, Range(2)] | None = None
  layout: Literal["half", "interleaved"] = "half"
  scaling: Annotated[object | None, SCALINGS] = None

  def check(self, heads):
    check_even(
      "rotary_dim", heads.head_dim if self.rotary_dim is None else self.rotary_dim, heads.head_dim
    )

  def frequencies(self, head_dim: int) -> tuple[np.ndarray, float]:
    """(theta_i float64 (P,), factor of cos and sin)."""
    r = self.rotary_dim or head_dim
    return self.scaling(self.theta, r) if self.scaling is not None else (ladder(self.theta, r), 1.0)

  def prepare(self, module, heads, context, state):
    # The same for all rows if every row counts 0, 1, 2 ...
    positions = context.positions_BT if context.packed else context.positions_BT[:1]
    theta_P, factor = self.frequencies(heads.head_dim)
    phase_BT1P = (
      positions[:, :, None, None].astype(jnp.float32)
      * jnp.asarray(theta_P, jnp.float32)[None, None, None]
    )
    return (jnp.cos(phase_BT1P) * factor, jnp.sin(phase_BT1P) * factor), state

  def encode(self, module, heads, q_BTNH, k_BTKH, x_BTD, context, shared, state):
    cos, sin = shared
    return Encoded(
      rotate(q_BTNH, cos, sin, layout=self.layout), rotate(k_BTKH, cos, sin, layout=self.layout)
    )
