"""Sequence to sequence, with the terms that make a delete gate delete.

Axes: B batch, L encoder length, T decoder length. Spec mrt5, sections 3 and 6.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError
from jaxlm.layers.delete_gate import PAD, DeleteGateConfig, Mode
from jaxlm.objectives.base import Objective, Pair
from jaxlm.objectives.deletion import REGULARISERS, Controller, entropy_regulariser, gate_regulariser


@dataclasses.dataclass(frozen=True)
class SequenceToSequence(Objective):
  """loss = CE + alpha R + beta S (+ entropy terms; + the boundary predictor's prior).

  alpha: weight of the gate regulariser; with `controller` only that of the first step. beta: of the score regulariser.
  delay: steps before R and the controller begin. hard_probability: of training with hard deletion, per micro-batch; then
    the cross-entropy gives the gate no gradient. hard_evaluation: evaluation deletes hard.
  capacities: ladder of encoder slots for hard deletion, smallest first; default: the encoder's length.
  overflow: more tokens kept than slots. 'exact': the step is done again in the next bucket; 'error': the run ends,
    one capacity given; 'drop': the last tokens are lost, and counted.
  """

  alpha: float = 0.0
  beta: float = 0.0
  regulariser: str = "gate_mean_loss"
  entropy: tuple[float, float] = (0.0, 0.0)
  controller: Controller | None = None
  delay: int = 0
  hard_probability: float = 0.0
  hard_evaluation: bool = True
  capacities: tuple[int, ...] | None = None
  overflow: Literal["exact", "error", "drop"] = "exact"

  def __post_init__(self):
    if not any(kind in self.regulariser for kind in REGULARISERS):
      raise ConfigError(f"regulariser = {self.regulariser!r} is none of {', '.join(REGULARISERS)}")
    if not 0 <= self.hard_probability <= 1:
      raise ConfigError(f"hard_probability = {self.hard_probability}: wanted a probability")
    if self.capacities is not None:
      if not self.capacities:
        raise ConfigError("capacities = (): the ladder is empty; give at least the encoder's length, or None")
      if min(self.capacities) < 1 or list(self.capacities) != sorted(set(self.capacities)):
        raise ConfigError(f"capacities = {self.capacities}: wanted growing numbers of 1 or more slots")
    if self.overflow == "error" and (self.capacities is None or len(self.capacities) != 1):
      raise ConfigError("overflow = 'error' needs `capacities` with the one size that must suffice")

  def buckets(self, batch_shape):
    return self.capacities or ()

  def first_bucket(self, num_buckets):
    return num_buckets - 1      # an untrained gate keeps everything

  def choose_bucket(self, metrics, current):
    if "kept_max" not in metrics or not self.capacities:
      return current
    need = float(metrics["kept_max"].mean()) * 1.05
    return next((i for i, c in enumerate(self.capacities) if c >= need), len(self.capacities) - 1)

  def init_state(self):
    zero = jnp.zeros((), jnp.float32)
    return {"alpha": jnp.asarray(self.alpha, jnp.float32), "p": zero, "i": zero, "step": jnp.zeros((), jnp.int32)}

  def update_state(self, state, metrics):
    """Once per optimiser step, from the global rate; never in evaluation."""
    step = state["step"] + 1
    if self.controller is None or "deleted" not in metrics:
      return state | {"step": step}
    alpha, p, i = self.controller.update(state["p"], state["i"], metrics["deleted"].mean())
    due = (state["step"] >= self.delay) & (state["step"] % self.controller.every == 0)
    keep = lambda new, old: jnp.where(due, new, old)
    return {"alpha": keep(alpha, state["alpha"]), "p": keep(p, state["p"]), "i": keep(i, state["i"]), "step": step}

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    def run(hard: bool):
      def go():
        return self._loss(model, params, batch, key, state, train, Mode(hard, bucket if hard else None))
      return go

    deletes = isinstance(model.cfg.reduction, DeleteGateConfig)
    if not train:
      return run(deletes and self.hard_evaluation)()
    if not deletes or self.hard_probability == 0:
      return run(False)()
    coin = jax.random.bernoulli(jax.random.fold_in(key, 2), self.hard_probability)
    return jax.lax.cond(coin, run(True), run(False))

  def _loss(self, model, params, batch, key, state, train, mode):
    w_BT, real_BL = batch["loss_weights"], batch["tokens"] != PAD
    rngs = {"dropout": jax.random.fold_in(key, 0), "noise": jax.random.fold_in(key, 1)}
    measure = bool(train and self.beta and not mode.hard)
    score, memory, S = model.apply({"params": params}, batch["tokens"], batch["decoder_tokens"], batch["targets"], real_BL,
                                   mode=mode, measure=measure, train=train, rngs=rngs, method="score")
    weight = jnp.sum(w_BT)
    ce = Pair(jnp.sum(jnp.where(w_BT > 0, -score.log_prob_BT, 0.0) * w_BT), weight)
    metrics, total = {"loss": ce}, ce.sum / jnp.maximum(weight, 1e-9)
    if "target_bytes" in batch:
      counted = jnp.sum(jnp.where(w_BT > 0, batch["target_bytes"], 0)).astype(jnp.float32)
      metrics["bits_per_byte"] = Pair(ce.sum / math.log(2), counted)
    one, reduced = jnp.ones((), jnp.float32), memory.reduced
    if reduced is None:
      return Pair(total * weight, weight), metrics
    as_float = lambda x: x.astype(jnp.float32)
    if reduced.gate_BL is not None:
      metrics["deleted"] = Pair(as_float(jnp.sum(~reduced.keep_BL & real_BL)), as_float(jnp.sum(real_BL)))
    if reduced.logits_BL is not None:
      R = gate_regulariser(self.regulariser, reduced.gate_BL, reduced.logits_BL, real_BL, model.cfg.reduction.tau)
      active = state["step"] >= self.delay
      total += jnp.where(active, state["alpha"], 0.0) * R
      if any(self.entropy):
        total += jnp.where(active, entropy_regulariser(reduced.gate_BL, real_BL, *self.entropy), 0.0)
      metrics |= {"gate_mean": Pair(R * weight, weight), "alpha": Pair(state["alpha"], one)}
    if measure:
      total += self.beta * S
      metrics["score_excess"] = Pair(S * weight, weight)
    if "loss" in reduced.extra:
      total += reduced.extra["loss"]
      metrics["boundary_loss"] = Pair(reduced.extra["loss"] * weight, weight)
    metrics["kept_max"] = Pair(as_float(jnp.max(reduced.count_B)), one)
    lost = as_float(jnp.sum(reduced.overflow_B))
    metrics["dropped_rows" if self.overflow == "drop" and train else "overflow"] = Pair(lost, one)
    return Pair(total * weight, weight), metrics
