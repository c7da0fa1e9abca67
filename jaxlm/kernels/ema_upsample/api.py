"""z_j = P_j x_j + (1 - P_j) z_{j-1},  y_t = z_{rank_t}.

Axes: B batch, T position, C chunks (capacity), D d_model.
"""

import jax.numpy as jnp

from jaxlm.kernels.choices import note
from jaxlm.kernels.compact import Compaction
from jaxlm.kernels.ema_upsample import reference, xla


def ema_upsample(
  x_BCD,
  p_BC,
  compaction: Compaction,
  *,
  reset_BC=None,
  initial_BD=None,
  implementation: str | None = None,
):
  """z_j = P_j x_j + (1 - P_j) z_{j-1};  y_t = z_{rank_t}. Returns (y_BTD, last z_BD), float32.

  P in [0, 1]; in the invalid slots of the compaction it is taken as 0, so the last value is that of
  the last chunk.
  reset_BC: bool, chunk j starts a document: z_{j-1} is taken as 0. initial_BD: z_{-1}, zero if
  absent; positions before the first chunk read it. Float32 throughout. Differentiable in x, P,
  initial. `docs/specs/hnet.md` section 9.
  """
  p_BC = jnp.where(compaction.valid_BC, p_BC.astype(jnp.float32), 0)
  decay_BC = 1 - p_BC
  if reset_BC is not None:
    decay_BC = jnp.where(reset_BC & compaction.valid_BC, 0, decay_BC)
  if initial_BD is None:
    initial_BD = jnp.zeros((x_BCD.shape[0], x_BCD.shape[2]), jnp.float32)
  initial_BD = initial_BD.astype(jnp.float32)
  note("ema_upsample", implementation or "xla", {"x": x_BCD}, named=implementation is not None)
  if implementation in (None, "xla"):
    return xla.ema_upsample(x_BCD, p_BC, decay_BC, initial_BD, compaction)
  if implementation == "reference":
    return reference.ema_upsample(x_BCD, p_BC, decay_BC, initial_BD, compaction.rank_BT)
  raise NotImplementedError(
    f"ema_upsample has no implementation {implementation!r}; known: reference, xla"
  )
