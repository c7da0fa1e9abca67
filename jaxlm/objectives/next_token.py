"""Next-token prediction.

Axes: B batch, T time.
"""

import dataclasses

import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.models.score import lexicon_of
from jaxlm.objectives.base import LossOutput, Objective, Pair
from jaxlm.ranges import Natural, NonNegative


@dataclasses.dataclass(frozen=True)
@checked
class NextToken(Objective):
  """loss = sum w (-log p(target) + z_loss (log z)^2) / sum w.

  z_loss: keeps the softmax's denominator near 1; 0 switches it off. Reported as `loss` (without the
  z term) and, where it is on, `z` (mean (log z)^2).
  prefix: targets inside the first so many tokens weigh 0: a prefix LM sees them.
  """

  z_loss: NonNegative = 0.0
  prefix: Natural = 0

  def check(self, cfg) -> None:
    longest = max((getattr(mixer, "prefix", 0) for mixer in cfg.model.mixers), default=0)
    if longest > self.prefix:
      raise ConfigError(
        f"model.mixer.prefix = {longest}, but objective.prefix = {self.prefix}: the model would see "
        f"its targets; set objective.prefix = {longest}"
      )

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
    if self.prefix:
      w_BT = w_BT * (batch["positions"] >= self.prefix - 1)
    weight = jnp.sum(w_BT)

    # Where the weight is 0 nothing counts, whatever an unused position says.
    def mean(x_BT):
      return Pair(jnp.sum(jnp.where(w_BT > 0, x_BT, 0.0) * w_BT), weight)

    nll = mean(-score.log_prob_BT)
    if not self.z_loss:
      return LossOutput(nll, {"loss": nll})
    z = mean(jnp.square(score.log_z_BT))
    return LossOutput(Pair(nll.sum + self.z_loss * z.sum, weight), {"loss": nll, "z": z})
