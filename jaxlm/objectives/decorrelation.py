"""Next-token prediction with states that are kept orthogonal to the first token's (arXiv 2510.22603).

Axes: L layers, B batch, T time, D d_model.
"""

import dataclasses

import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers.stack import in_layer_order
from jaxlm.models.decoder import DecoderConfig
from jaxlm.objectives.base import LossOutput, Pair
from jaxlm.objectives.next_token import NextToken
from jaxlm.ranges import NonNegative


def squared_cosines(h_BTD, first_BT):
  """cos(h_first(t), h_t)^2, float32 (B, T). first: int32, where the segment of each token begins.

  A zero vector has cosine 0. The gradient flows into both states.
  """
  h_BTD = h_BTD.astype(jnp.float32)
  norm_BT1 = jnp.sqrt(jnp.maximum(jnp.sum(h_BTD * h_BTD, -1, keepdims=True), 1e-12))
  unit_BTD = h_BTD / norm_BT1
  first_BTD = jnp.take_along_axis(unit_BTD, first_BT[..., None], axis=1)
  return jnp.square(jnp.sum(unit_BTD * first_BTD, axis=-1))


def decorrelation(states, segment_ids_BT, positions_BT) -> Pair:
  """Mean over layers and over tokens behind the first of their segment, padding left out.

  states: one (B, T, D) per layer. A row of one token counts nothing.
  """
  index_1T = jnp.arange(positions_BT.shape[1], dtype=jnp.int32)[None]
  first_BT = jnp.maximum(index_1T - positions_BT, 0)
  counts_BT = (positions_BT > 0) & (segment_ids_BT != 0)
  total = sum(jnp.sum(jnp.where(counts_BT, squared_cosines(h, first_BT), 0.0)) for h in states)
  return Pair(total / len(states), jnp.sum(counts_BT).astype(jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
@checked
class Decorrelation(NextToken):
  """loss + weight * mean_l mean_t cos(h_l0, h_lt)^2 over layers 1 .. L - 1, the last one left out.

  The paper's weight of 10,000 is for a frozen model with adapters. Reports `loss` and
  `decorrelation`.
  """

  weight: NonNegative = 1.0

  def check(self, cfg) -> None:
    super().check(cfg)
    if not isinstance(cfg.model, DecoderConfig):
      raise ConfigError(
        "objective.kind = 'decorrelation' reads the layers of model.kind = 'decoder'"
      )
    if cfg.model.num_layers < 2:
      raise ConfigError(
        f"model.num_layers = {cfg.model.num_layers}: objective.kind = 'decorrelation' leaves the last "
        "layer out, so there is nothing to penalise; use two layers or more"
      )
    if getattr(cfg.data, "packing", "") == "windows" and not cfg.data.row_start:
      raise ConfigError(
        "objective.kind = 'decorrelation' compares states with that of a start token, and windows begin "
        "anywhere; set data.row_start = True"
      )

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    read = _WithStates(model)
    out = super().loss(read, params, batch, key, state, train=train, bucket=bucket)
    penalty = decorrelation(read.states[:-1], batch["segment_ids"], batch["positions"])
    # Both are means over their own tokens; the loss is divided by its weight later.
    share = self.weight * penalty.mean() * out.loss.weight
    metrics = out.metrics | {"decorrelation": penalty}
    return LossOutput(Pair(out.loss.sum + share, out.loss.weight), metrics)


class _WithStates:
  """A model whose `apply` also keeps the residual stream behind every layer, from one pass."""

  def __init__(self, model):
    self.model, self.cfg, self.states = model, model.cfg, []

  def apply(self, variables, *args, **options):
    out, kept = self.model.apply(variables, *args, mutable=["intermediates"], **options)
    sown = kept["intermediates"]["blocks"]
    self.states = in_layer_order(sown, self.cfg.mixers, self.cfg.period)
    return out
