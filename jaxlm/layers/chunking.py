"""Dynamic chunking: select boundary rows, run the inner network on them, smooth, upsample
(`docs/specs/hnet.md` 7-9, 16).

Axes: B batch, T time, C chunk capacity, D d_model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.compact import Compaction, gather, upsample
from jaxlm.kernels.ema_upsample import ema_upsample
from jaxlm.kernels.route import Route
from jaxlm.layers.mamba2 import starts

LOWEST_WEIGHT = 1e-4  # of the moving average, and one minus the highest


class StageInfo(NamedTuple):
  """What one stage decided, for losses, metrics and pictures.

  p_BT, confidence_BT: float32; boundary_BT, valid_BT, kept_BT: bool (kept: less what exceeded the
  capacity);
  count_B: int32 boundaries of each chunk buffer (a row, or several); overflow_B: bool, more than
  the capacity.
  """

  p_BT: jax.Array
  confidence_BT: jax.Array
  boundary_BT: jax.Array
  valid_BT: jax.Array
  kept_BT: jax.Array
  count_B: jax.Array
  overflow_B: jax.Array


def stage_info(decision: Route, compaction: Compaction, valid_BT) -> StageInfo:
  return StageInfo(
    decision.p_BT,
    decision.confidence_BT,
    decision.boundary_BT,
    valid_BT,
    compaction.kept_BT.reshape(valid_BT.shape),
    compaction.count_B,
    compaction.overflow_B,
  )


def inner_context(context, compaction: Compaction, seen_B=None):
  """The context of the chunks: segments of their bytes (0 in empty slots), positions counted in
  chunks.

  seen_B: chunks already seen, of a row that goes on.
  """
  segment_ids_BC = gather(context.segment_ids_BT, compaction)
  slot_1C = jnp.arange(segment_ids_BC.shape[1], dtype=jnp.int32)[None]
  if seen_B is None:
    first_BC = jax.lax.cummax(jnp.where(starts(segment_ids_BC), slot_1C, 0), axis=1)
    positions_BC = slot_1C - first_BC
  else:
    positions_BC = seen_B[:, None] + slot_1C
  return context.replace(
    segment_ids_BT=segment_ids_BC,
    positions_BT=positions_BC,
    packed=True,
    embedding_BTD=None,
    shared=None,
    shared_by=None,
  )


def reads_its_own(segment_ids_BT, chunk_segment_ids_BC, compaction: Compaction):
  """Bool: the slot that a position reads holds a chunk of its own document (padding counts as if it
  did).

  Not so where the buffer was full before a document began: its positions would read the last chunk
  of another.
  """
  read_BT = upsample(chunk_segment_ids_BC, compaction)
  return (segment_ids_BT == 0) | (read_BT == segment_ids_BT)


@jax.custom_jvp
def straight_through(c_BT):
  """1, with the derivative of c."""
  return jnp.ones_like(c_BT)


straight_through.defjvp(lambda primals, tangents: (jnp.ones_like(primals[0]), tangents[0]))


def dechunk(
  z_BCD,
  decision: Route,
  compaction: Compaction,
  reset_BC,
  initial_BD=None,
  *,
  smooth: bool = True,
  confident: bool = True,
  own_BT=None,
  spec=None,
):
  """y_t = STE(c_t) zb_{rank_t}, zb_j = P_j z_j + (1 - P_j) zb_{j-1}. Returns (y_BTD, last zb_BD),
  float32.

  smooth False: zb = z. confident False: without STE(c). Both are ablations of the paper. own_BT:
  bool, y is 0 where not (`reads_its_own`); None: everywhere. spec: PartitionSpec of z under the
  context mesh.
  """
  p_BC = gather(decision.p_BT, compaction)
  p_BC = jnp.clip(p_BC, LOWEST_WEIGHT, 1 - LOWEST_WEIGHT) if smooth else jnp.ones_like(p_BC)
  y_BTD, last_BD = ema_upsample(
    z_BCD, p_BC, compaction, reset_BC=reset_BC, initial_BD=initial_BD, spec=spec
  )
  if own_BT is not None:
    y_BTD = jnp.where(own_BT[..., None], y_BTD, 0)
  if confident:
    # A boundary that did not fit is no boundary: what its position reads is trusted with 1 - p.
    lost_BT = decision.boundary_BT & ~compaction.kept_BT
    c_BT = jnp.where(lost_BT, 1 - decision.p_BT, decision.confidence_BT)
    y_BTD = straight_through(c_BT)[..., None] * y_BTD
  return y_BTD, last_BD


def ratio_loss(boundaries, probability, weight, target: float):
  """N/(N-1) ((N-1) F G + (1-F)(1-G)), F = boundaries/weight, G = probability/weight (paper, eq.
  10).

  boundaries, probability, weight: sums over valid positions; F has no gradient. target: N > 1.
  """
  if target <= 1:
    raise ValueError(
      f"ratio target {target}: chunks must be longer than one token on average; give N > 1"
    )
  weight = jnp.maximum(weight, 1e-9)
  f, g = jax.lax.stop_gradient(boundaries) / weight, probability / weight
  return target / (target - 1) * ((target - 1) * f * g + (1 - f) * (1 - g))


def ratio_sums(info: StageInfo):
  """(boundaries, sum of p, valid positions) of one stage, float32."""
  valid_BT = info.valid_BT.astype(jnp.float32)
  return jnp.sum(info.boundary_BT * valid_BT), jnp.sum(info.p_BT * valid_BT), jnp.sum(valid_BT)
