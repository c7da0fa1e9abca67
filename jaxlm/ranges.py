"""Which numbers a field may hold, said in its type:

    learning_rate: NonNegative          width: Count          depth: Annotated[float, Range(0, 90)]

`jaxlm.config` refuses what lies outside, wherever a configuration is built. Every numeric field of
a configuration has a range, if only `Integer` or `Finite`; no range holds NaN or infinity.
"""

import dataclasses
import math
from typing import Annotated, Literal


def storable(x) -> bool:
  """Whether the number is finite and, if it is whole, one of 64 bits: no array has a larger size."""
  return -(1 << 63) <= x < 1 << 63 if isinstance(x, int) else math.isfinite(x)


@dataclasses.dataclass(frozen=True)
class Range:
  """low <= x <= high, or < where that end is open. also: single numbers outside that have a meaning
  of their own.
  """

  low: float = -math.inf
  high: float = math.inf
  open_low: bool = False
  open_high: bool = False
  also: tuple[float, ...] = ()

  def __contains__(self, x) -> bool:
    above = x > self.low if self.open_low else x >= self.low
    below = x < self.high if self.open_high else x <= self.high
    return x in self.also or (storable(x) and above and below)

  def __str__(self) -> str:
    parts = []
    if self.low > -math.inf:
      parts.append(f"a number above {self.low:,}" if self.open_low else f"{self.low:,} or more")
    if self.high < math.inf:
      parts.append(f"below {self.high:,}" if self.open_high else f"at most {self.high:,}")
    return " or ".join([", ".join(parts) or "a finite number", *map(str, self.also)])


#: Sizes, numbers of things.
Count = Annotated[int, Range(1)]
#: Numbers of things that may be none, ids.
Natural = Annotated[int, Range(0)]
#: Layers of a stack. A model holds an entry for each before anything is allocated.
Layers = Annotated[int, Range(1, 100_000)]
Integer = Annotated[int, Range()]
#: What jax.random.key and NumPy's generators tell apart. Larger seeds are cut to 32 bits by the
#: former only.
Seed = Annotated[int, Range(0, 2**32 - 1)]
#: Steps of a run: the train state counts them in 32 bits.
Steps = Annotated[int, Range(1, 2**31 - 1)]
Cadence = Annotated[int, Range(0, 2**31 - 1)]

Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Negative = Annotated[float, Range(high=0, open_high=True)]
Finite = Annotated[float, Range()]
#: [0, 1]
Fraction = Annotated[float, Range(0, 1)]
#: [0, 1): decays of averages, dropout.
BelowOne = Annotated[float, Range(0, 1, open_high=True)]
#: (0, 1)
Inside = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
#: (0, 1]
UpToOne = Annotated[float, Range(0, 1, open_low=True)]

#: What a model computes in. float64 needs jax_enable_x64.
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
