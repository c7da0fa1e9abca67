r"""A decoder whose later tokens run fewer layers: SkipDecode (Del Corro et al., arXiv 2307.02628).

Axes: B batch, T time, D d_model, L layers.

Position i of a row has a budget of layers, the same in every row: with u = (i - start) / (length - 1),
cut to [0, 1], linear from max_layers at u = 0 to min_layers at u = 1. The first of `length` positions has
max_layers, the last min_layers; positions before `start` (a prompt) have max_layers. A token runs the
first `warmup` layers and the last (budget - warmup); in between it passes unchanged (the band that the
paper skips; one warm-up layer is our reading of it).

Budgets never grow along a row, so every layer that a token uses was computed by all earlier tokens, and
its keys and values are there: nothing is computed again. With min_layers = max_layers = L it is the
plain decoder, to the last bit.

keep "first" runs the first layers instead (early exit with the same budgets), "random" a random choice
per position besides the warm-up: the baselines. Here a skipped layer is computed and not used, which is
what training in parallel needs; a nominal speed-up is L over the mean budget, not a time. Under "random" a
token may also attend to keys and values of tokens that skip the layer; a decoder that does skip it would not
have them, so this baseline is better here than it could be in use.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers.stack import Block, scan_layers
from jaxlm.models.decoder import DecoderConfig
from jaxlm.ranges import Count, Natural


@dataclasses.dataclass(frozen=True)
@checked
class SkipSchedule:
  """See above. length: positions over which the budget falls."""

  min_layers: Count
  max_layers: Count
  length: Count
  start: Natural = 0
  warmup: Natural = 1
  keep: Literal["last", "first", "random"] = "last"

  def __post_init__(self):
    if not self.warmup <= self.min_layers <= self.max_layers:
      raise ConfigError(
        f"warmup = {self.warmup}, min_layers = {self.min_layers}, max_layers = {self.max_layers}: wanted them in "
        f"this order, or a later token would need a layer that an earlier one has skipped"
      )

  @classmethod
  def of_speed(cls, speed: float, num_layers: int, length: int, **fields) -> "SkipSchedule":
    """Budgets whose mean is num_layers / speed: max_layers as large as that allows."""
    warmup = fields.get("warmup", 1)
    mean = num_layers / speed
    if mean < max(warmup, 1):
      raise ConfigError(
        f"speed {speed} leaves {mean:.2f} of {num_layers} layers, and {max(warmup, 1)} always run; ask for less"
      )
    top = min(num_layers, round(2 * mean - max(warmup, 1)))
    bottom = max(round(2 * mean) - top, warmup, 1)
    return cls(min(bottom, top), top, length, **fields)

  def budget(self, positions_BT):
    """int32 (B, T): layers that each position runs."""
    u_BT = jnp.clip((positions_BT - self.start) / max(self.length - 1, 1), 0.0, 1.0)
    fall = self.max_layers - self.min_layers
    # The floor of 1/2 more is the nearest number; it never grows along a row.
    return jnp.floor(self.max_layers - fall * u_BT + 0.5).astype(jnp.int32)

  def runs(self, layer, positions_BT, num_layers: int):
    """bool (B, T): whether a position runs a layer; layer may be traced."""
    budget_BT = self.budget(positions_BT)
    if self.keep == "first":
      return layer < budget_BT
    if self.keep == "last":
      return (layer < self.warmup) | (layer >= num_layers - (budget_BT - self.warmup))

    def of_position(position, budget):
      order = jax.random.permutation(
        jax.random.fold_in(jax.random.key(0), position), num_layers - self.warmup
      )
      return order[jnp.maximum(layer - self.warmup, 0)] < budget - self.warmup

    chosen_BT = jax.vmap(jax.vmap(of_position))(positions_BT, budget_BT)
    return (layer < self.warmup) | chosen_BT


@dataclasses.dataclass(frozen=True)
@checked
class SkipDecoderConfig(DecoderConfig):
  """A decoder of equal layers with a schedule; its parameters are those of the plain one.

  schedule: None runs every layer.
  """

  schedule: SkipSchedule | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.period != 1:
      raise ConfigError("a skip schedule needs layers that are all alike; leave the pattern out")
    schedule = self.schedule
    if schedule is not None and schedule.max_layers > self.num_layers:
      raise ConfigError(
        f"schedule.max_layers = {schedule.max_layers} exceeds num_layers = {self.num_layers}; lower it"
      )

  def build_stack(self, *, init: bool) -> nn.Module:
    if self.schedule is None:
      return super().build_stack(init=init)
    return SkipStack(self, name="blocks")


class SkipBlock(Block):
  """A block that leaves tokens as they are where the schedule skips it."""

  schedule: SkipSchedule | None = None
  num_layers: int = 0

  def __call__(self, x_BTD, context, state, layer):
    runs_BT = self.schedule.runs(layer, context.positions_BT, self.num_layers)
    return super().__call__(x_BTD, context, state, runs_BT)


def SkipStack(cfg: SkipDecoderConfig, name: str):
  """`x_BTD, states = stack(x_BTD, context, states)`."""
  layers = scan_layers(SkipBlock, cfg.num_layers, (nn.broadcast, 0, 0), unroll=cfg.unroll)(
    cfg.block, cfg.mixers[0], None, cfg.schedule, cfg.num_layers, name=name
  )
  number_L = jnp.arange(cfg.num_layers)
  return lambda x_BTD, context, states: layers(x_BTD, context, states, number_L)
