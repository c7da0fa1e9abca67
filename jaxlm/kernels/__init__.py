"""Hot operations, one folder each: the definition (reference.py), fast forms, one public function.

`from jaxlm.kernels import ssd` gives an operation to call; `ssd.reference` and its other modules are
inside. Those of `phase` have names of their own.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jaxlm.kernels.attention import attention as attention
  from jaxlm.kernels.compact import compact as compact
  from jaxlm.kernels.delta_rule import delta_rule as delta_rule
  from jaxlm.kernels.ema_upsample import ema_upsample as ema_upsample
  from jaxlm.kernels.fast_weight_chunk import fast_weight_chunk as fast_weight_chunk
  from jaxlm.kernels.gla import gla as gla
  from jaxlm.kernels.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
  from jaxlm.kernels.newton_schulz import newton_schulz as newton_schulz
  from jaxlm.kernels.phase import (
    carope_rotate as carope_rotate,
  )
  from jaxlm.kernels.phase import (
    cumulative_phase as cumulative_phase,
  )
  from jaxlm.kernels.random_head import random_head as random_head
  from jaxlm.kernels.route import route as route
  from jaxlm.kernels.ssd import ssd as ssd

_OPERATIONS = (
  "attention",
  "compact",
  "delta_rule",
  "ema_upsample",
  "fast_weight_chunk",
  "gla",
  "linear_cross_entropy",
  "newton_schulz",
  "random_head",
  "route",
  "ssd",
)
_OF_PHASE = ("carope_rotate", "cumulative_phase")
__all__ = [*_OPERATIONS, *_OF_PHASE]


def __getattr__(name: str):
  if name in _OPERATIONS or name == "phase":
    return importlib.import_module(f"jaxlm.kernels.{name}")
  if name in _OF_PHASE:
    return getattr(importlib.import_module("jaxlm.kernels.phase"), name)
  raise AttributeError(
    f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
  )
