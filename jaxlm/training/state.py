"""The train state: everything that a resumed run needs besides its config and the data iterator."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

PyTree = Any


@struct.dataclass
class TrainState:
  """step: int32, batches consumed. Randomness is fold_in(key(seed), step), so no key is stored."""

  step: jax.Array
  params: PyTree
  opt_state: PyTree  # the optimiser's, or guard.Watched with it, if spikes of the loss are skipped
  ema: PyTree | None  # average of params, float32, or None
  objective: PyTree  # the objective's own state (a controller)
  skipped: (
    jax.Array
  )  # int32: steps without an update because loss, gradient or update was not finite, or a spike
  skipped_in_row: jax.Array  # int32: how many of them just now

  @classmethod
  def create(cls, params, tx, objective, use_ema: bool) -> "TrainState":
    def zero():
      return jnp.zeros((), jnp.int32)

    # A copy: params and ema are donated together and may not share a buffer.
    ema = jax.tree.map(jnp.copy, params) if use_ema else None
    return cls(
      step=zero(),
      params=params,
      opt_state=tx.init(params),
      ema=ema,
      objective=objective.init_state(),
      skipped=zero(),
      skipped_in_row=zero(),
    )
