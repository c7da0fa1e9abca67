from jaxlm.kernels.fast_weight_chunk.api import (
  accumulate,
  bidirectional,
  cannot_split,
  fast_weight_chunk,
  interleaved_video,
  view_synthesis,
)
from jaxlm.kernels.fast_weight_chunk.rule import (
  Causal,
  FastWeights,
  Item,
  Rule,
  apply_update,
  initial_state,
  read,
)
from jaxlm.kernels.operation import callable_package

__all__ = [
  "Causal",
  "FastWeights",
  "Item",
  "Rule",
  "accumulate",
  "apply_update",
  "bidirectional",
  "cannot_split",
  "fast_weight_chunk",
  "initial_state",
  "interleaved_video",
  "read",
  "view_synthesis",
]

callable_package(fast_weight_chunk)
