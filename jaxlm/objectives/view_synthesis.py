"""View synthesis: the target views from the input views.

Axes: B batch, S target views.
"""

import dataclasses
import importlib
from typing import ClassVar

import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.models.lact_nvs import views_of
from jaxlm.objectives.base import LossOutput, Objective, Pair
from jaxlm.ranges import Natural, NonNegative


@dataclasses.dataclass(frozen=True)
@checked
class ViewSynthesis(Objective):
  """loss = mean squared error + perceptual_weight * perceptual distance, the latter from step
  perceptual_start on.

  perceptual: 'module:function' of (image, target), both (N, 3, Y, X) in [0, 1], to (N,) distances:
  LPIPS, whose weights
    are not part of jaxlm. None leaves it out. The paper adds it with weight 1 after 5,000 steps.
  Reported: `mse`, `psnr` (dB, mean over views of -10 log10 mse) and `perceptual`.
  """

  scores: ClassVar[str] = "views"
  batch_form: ClassVar[str] = "views"

  perceptual: str | None = None
  perceptual_weight: NonNegative = 1.0
  perceptual_start: Natural = 5000

  def __post_init__(self):
    if self.perceptual is not None and ":" not in self.perceptual:
      raise ConfigError(
        f"objective.perceptual = {self.perceptual!r}: wanted 'module:function', or None"
      )

  def init_state(self):
    return {"step": jnp.zeros((), jnp.int32)}

  def update_state(self, state, output):
    return {"step": state["step"] + 1}

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    wanted, weight_BS = views_of(batch, "target"), batch["loss_weights"]
    image = model.apply(
      {"params": params}, views_of(batch, "input"), wanted._replace(images_BSCYX=None)
    )
    mse_BS = jnp.mean(jnp.square(image - wanted.images_BSCYX), (2, 3, 4))

    def mean(x_BS):
      return Pair(jnp.sum(x_BS * weight_BS), jnp.sum(weight_BS))

    total_BS, metrics = (
      mse_BS,
      {"mse": mean(mse_BS), "psnr": mean(-10 * jnp.log10(jnp.maximum(mse_BS, 1e-10)))},
    )
    if self.perceptual is not None:
      module, name = self.perceptual.split(":")

      def flat(x):
        return x.reshape(-1, *x.shape[2:])

      distance_BS = getattr(importlib.import_module(module), name)(
        flat(image), flat(wanted.images_BSCYX)
      ).reshape(mse_BS.shape)
      metrics["perceptual"] = mean(distance_BS)
      total_BS += (
        jnp.where(state["step"] >= self.perceptual_start, self.perceptual_weight, 0.0) * distance_BS
      )
    return LossOutput(mean(total_BS), metrics)
