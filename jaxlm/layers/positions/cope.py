"""CoPE: positions counted by gates that look at content (arXiv 2405.18719). Axes: H head_dim, P
positions.
"""

import dataclasses
from typing import Annotated

from jaxlm.config import checked
from jaxlm.kernels import attention
from jaxlm.layers.positions import Position
from jaxlm.layers.weights import weights, zeros
from jaxlm.parameter import SPARED
from jaxlm.ranges import Range


@dataclasses.dataclass(frozen=True)
@checked
class CoPE(Position):
  """s_mn += (q_m E)[p_mn], p_mn = sum_{j=n..m} sigmoid(s_mj) (docs/specs/carope.md section 7); see
  kernels.attention.CoPE.

  num_positions: columns of E; larger positions are clamped to the last. Scores of a whole row are
  needed at once, so no fused attention covers it.
  """

  num_positions: Annotated[int, Range(2)] = 64
  ordered_keys = True

  def bias(self, module, heads, query_info, key_info, shared):
    table_HP = weights(module)(
      "cope_table",
      (heads.head_dim, self.num_positions),
      ("head_dim", None),
      init=zeros,
      role=SPARED,
    )
    return attention.CoPE(table_HP)
