"""Next-token prediction.

Axes: B batch, T time.
"""

import dataclasses

import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.models.score import lexicon_of
from jaxlm.objectives.base import LossOutput, Objective, Pair
from jaxlm.ranges import NonNegative


@dataclasses.dataclass(frozen=True)
@checked
class NextToken(Objective):
  """loss = sum w (-log p(target) + z_loss (log z)^2) / sum w.

  z_loss: keeps the softmax's denominator near 1; 0 switches it off. Reported as `loss` (without the
  z term) and, where it is on, `z` (mean (log z)^2).
  """

  z_loss: NonNegative = 0.0

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    score = model.apply(
      {"params": params},
      batch["tokens"],
      batch["targets"],
      batch["segment_ids"],
      batch["positions"],
      method="score",
      **lexicon_of(model.cfg, batch, train=train),
    )
    w_BT = batch["loss_weights"]
    weight = jnp.sum(w_BT)

    # Where the weight is 0 nothing counts, whatever an unused position says.
    def mean(x_BT):
      return Pair(jnp.sum(jnp.where(w_BT > 0, x_BT, 0.0) * w_BT), weight)

    nll = mean(-score.log_prob_BT)
    if not self.z_loss:
      return LossOutput(nll, {"loss": nll})
    z = mean(jnp.square(score.log_z_BT))
    return LossOutput(Pair(nll.sum + self.z_loss * z.sum, weight), {"loss": nll, "z": z})
