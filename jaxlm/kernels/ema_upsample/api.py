"""z_j = P_j x_j + (1 - P_j) z_{j-1},  y_t = z_{rank_t}.

Axes: B batch, T position, C chunks (capacity), D d_model.
"""

import jax.numpy as jnp

from jaxlm.kernels.choices import note
from jaxlm.kernels.compact import Compaction
from jaxlm.kernels.compact.pallas_tpu import over_batch
from jaxlm.kernels.ema_upsample import blocks, pallas_tpu, reference, xla
from jaxlm.kernels.platform import target_device_kind


def ema_upsample(
  x_BCD,
  p_BC,
  compaction: Compaction,
  *,
  reset_BC=None,
  initial_BD=None,
  implementation: str | None = None,
  spec=None,
):
  """z_j = P_j x_j + (1 - P_j) z_{j-1};  y_t = z_{rank_t}. Returns (y_BTD, last z_BD), float32.

  P in [0, 1]; in the invalid slots of the compaction it is taken as 0, so the last value is that of
  the last chunk.
  reset_BC: bool, chunk j starts a document: z_{j-1} is taken as 0. initial_BD: z_{-1}, zero if
  absent; positions before the first chunk read it. Float32 throughout. Differentiable in x, P,
  initial. `docs/specs/hnet.md` section 9.
  implementation: None, "reference", "xla", "pallas" (TPU kernels). spec: PartitionSpec of x under the
  context mesh; the kernels need it there, with chunks and channels whole.
  """
  p_BC = jnp.where(compaction.valid_BC, p_BC.astype(jnp.float32), 0)
  decay_BC = 1 - p_BC
  if reset_BC is not None:
    decay_BC = jnp.where(reset_BC & compaction.valid_BC, 0, decay_BC)
  if initial_BD is None:
    initial_BD = jnp.zeros((x_BCD.shape[0], x_BCD.shape[2]), jnp.float32)
  initial_BD = initial_BD.astype(jnp.float32)
  if implementation not in (None, "reference", "xla", "pallas"):
    raise NotImplementedError(
      f"ema_upsample has no implementation {implementation!r}; known: reference, xla, pallas"
    )
  name = implementation or "xla"
  if implementation == "pallas" and (reason := pallas_tpu.supports(x_BCD, spec)) is not None:
    raise NotImplementedError(f"ema_upsample implementation 'pallas': {reason}")
  if implementation is None and blocks.prefers_pallas(
    target_device_kind(), compaction.rank_BT.shape[1], x_BCD.shape[2]
  ):
    name = "pallas" if pallas_tpu.supports(x_BCD, spec) is None else "xla"
  note(
    "ema_upsample",
    name,
    {"x": x_BCD, "rank": compaction.rank_BT},
    named=implementation is not None,
    refused=lambda: {"pallas": pallas_tpu.supports(x_BCD, spec)},
  )
  if name == "reference":
    return reference.ema_upsample(x_BCD, p_BC, decay_BC, initial_BD, compaction.rank_BT)
  if name == "pallas":
    return over_batch(
      pallas_tpu.ema_upsample, spec, x_BCD, p_BC, decay_BC, initial_BD, compaction.rank_BT
    )
  return xla.ema_upsample(x_BCD, p_BC, decay_BC, initial_BD, compaction)
