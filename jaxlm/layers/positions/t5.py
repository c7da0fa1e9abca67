"""T5's relative bias: one learned number per head and bucket of distances. Axes: N heads."""

import dataclasses
from typing import Annotated

from jaxlm.config import checked
from jaxlm.kernels.attention import BucketBias
from jaxlm.layers.positions import Position
from jaxlm.layers.weights import weights
from jaxlm.parameter import SPARED
from jaxlm.ranges import Count, Range


@dataclasses.dataclass(frozen=True)
@checked
class T5Bias(Position):
  """s_mn += table[bucket(m - n), head], causal buckets. share_across_layers: one table for the
  model, as in T5.
  """

  num_buckets: Annotated[int, Range(2)] = 32
  max_distance: Count = 128
  share_across_layers: bool = True

  def _table(self, module, heads):
    return weights(module)(
      "relative_bias", (self.num_buckets, heads.num_heads), (None, "heads"), role=SPARED
    )

  def prepare(self, module, heads, context, state):
    return (self._table(module, heads) if self.share_across_layers else None), state

  def bias(self, module, heads, query_info, key_info, shared):
    table = shared if self.share_across_layers else self._table(module, heads)
    return BucketBias(table, bidirectional=False, max_distance=self.max_distance)
