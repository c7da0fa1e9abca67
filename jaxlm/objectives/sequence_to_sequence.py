"""Sequence to sequence, with the terms that make a delete gate delete.

Axes: B batch, L encoder length, T decoder length. docs/specs/mrt5.md, sections 3 and 6.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers.delete_gate import PAD, DeleteGateConfig, Mode
from jaxlm.objectives.base import Fit, LossOutput, Pair
from jaxlm.objectives.buckets import (
  BucketedObjective,
  check_capacities,
  check_rows,
  decayed_max,
  fractions_of,
)
from jaxlm.objectives.deletion import (
  REGULARISERS,
  Controller,
  entropy_regulariser,
  gate_regulariser,
)
from jaxlm.ranges import Count, Fraction, Natural, NonNegative


@dataclasses.dataclass(frozen=True)
@checked
class SequenceToSequence(BucketedObjective):
  """loss = CE + alpha R + beta S (+ entropy terms; + the boundary predictor's prior).

  alpha: weight of the gate regulariser; with `controller` only that of the first step. beta: of the
  score regulariser.
  delay: steps before R and the controller begin. hard_probability: of training with hard deletion,
  per micro-batch; then
    the cross-entropy gives the gate no gradient. hard_evaluation: evaluation deletes hard.
  capacities: buckets of encoder slots for hard deletion (of a buffer), smallest first; default:
  fractions of the length
    rounded up to `multiple`. rows_per_buffer: rows whose kept tokens share a buffer, one behind the
    other.
  overflow: more tokens kept than slots. 'exact': the step is done again in a larger bucket;
  'error': the run ends, one
    capacity given; 'drop': the tokens with the lowest gates are lost, and counted in dropped_rows
    and dropped_tokens.
  multiple, headroom, memory: as in `BucketedObjective`.
  """

  scores: ClassVar[str] = "target_sequence"
  batch_form: ClassVar[str] = "encoder_decoder"

  alpha: NonNegative = 0.0
  beta: NonNegative = 0.0
  regulariser: str = "gate_mean_loss"
  entropy: tuple[NonNegative, NonNegative] = (0.0, 0.0)
  controller: Controller | None = None
  delay: Natural = 0
  hard_probability: Fraction = 0.0
  hard_evaluation: bool = True
  capacities: tuple[Count, ...] | None = None
  rows_per_buffer: Count = 1
  overflow: Literal["exact", "error", "drop"] = "exact"

  def __post_init__(self):
    if not any(kind in self.regulariser for kind in REGULARISERS):
      raise ConfigError(f"regulariser = {self.regulariser!r} is none of {', '.join(REGULARISERS)}")
    check_capacities(self.capacities)
    if self.capacities is not None and (
      min(self.capacities) < 1 or list(self.capacities) != sorted(set(self.capacities))
    ):
      raise ConfigError(
        f"capacities = {self.capacities}: wanted growing numbers of 1 or more slots"
      )
    if self.overflow == "error" and (self.capacities is None or len(self.capacities) != 1):
      raise ConfigError("overflow = 'error' needs `capacities` with the one size that must suffice")

  def check(self, cfg):
    """Against the other sections: buckets that redo steps end where everything fits; buffers divide
    the batch.
    """
    slots = cfg.data.seq_len * self.rows_per_buffer
    if self.overflow == "exact" and self.capacities is not None and self.capacities[-1] < slots:
      raise ConfigError(
        f"objective.capacities = {self.capacities} ends below the {slots} tokens of a buffer, so a step might "
        f"never fit; add {slots}, or choose overflow = 'error' or 'drop'"
      )
    check_rows("objective.rows_per_buffer", self.rows_per_buffer, cfg)

  def buckets(self, model, batch_shape):
    return self.capacities or tuple(
      slots for (slots,) in fractions_of(batch_shape[1] * self.rows_per_buffer, self.multiple)
    )

  @property
  def bucketed_training(self):
    return self.hard_probability > 0

  def init_state(self):
    zero = jnp.zeros((), jnp.float32)
    return {
      "alpha": jnp.asarray(self.alpha, jnp.float32),
      "p": zero,
      "i": zero,
      "step": jnp.zeros((), jnp.int32),
      "largest": zero,
    }

  def update_state(self, state, output):
    """Once per optimiser step, from the global rate; never in evaluation."""
    step = state["step"] + 1
    largest = state["largest"]
    if output.fit is not None:
      largest = decayed_max(largest, output.fit.need_S[0], self.memory)
    if self.controller is not None and not self.controller.per_micro_batch:
      state = self._controlled(state, output)
    return state | {"step": step, "largest": largest}

  def after_micro_batch(self, state, output):
    """The release's controller, if it is asked for."""
    return (
      self._controlled(state, output)
      if self.controller is not None and self.controller.per_micro_batch
      else state
    )

  def _controlled(self, state, output):
    if "deleted" not in output.observed:
      return state
    deleted = output.observed["deleted"].mean()
    alpha, p, i = self.controller.update(state["p"], state["i"], deleted)
    due = (state["step"] >= self.delay) & (state["step"] % self.controller.every == 0)

    def keep(new, old):
      return jnp.where(due, new, old)

    return state | {
      "alpha": keep(alpha, state["alpha"]),
      "p": keep(p, state["p"]),
      "i": keep(i, state["i"]),
    }

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    def run(hard: bool):
      mode = (
        Mode(True, bucket, rows=self.rows_per_buffer, drop=self.overflow == "drop")
        if hard
        else Mode()
      )
      return lambda: self._loss(model, params, batch, key, state, train, mode)

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
    measure, targets_BT = bool(train and self.beta), batch["targets"]
    common = dict(mode=mode, measure=measure, train=train, rngs=rngs)
    weight, metrics = jnp.sum(w_BT), {}
    if train:
      score = model.apply(
        {"params": params},
        batch["tokens"],
        batch["decoder_tokens"],
        targets_BT,
        real_BL,
        method="score",
        **common,
      )
      nll_BT, (memory, S) = -score.log_prob_BT, score.aux
    else:
      logits_BTV, (memory, S), _ = model.apply(
        {"params": params},
        batch["tokens"],
        batch["decoder_tokens"],
        real_BL,
        method="run",
        **common,
      )
      nll_BT = -jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), targets_BT[..., None], -1)[
        ..., 0
      ]
      metrics = accuracies(logits_BTV, targets_BT, w_BT)
    ce = Pair(jnp.sum(jnp.where(w_BT > 0, nll_BT, 0.0) * w_BT), weight)
    metrics["loss"], total = ce, ce.sum / jnp.maximum(weight, 1e-9)
    if "target_bytes" in batch:
      counted = jnp.sum(jnp.where(w_BT > 0, batch["target_bytes"], 0)).astype(jnp.float32)
      metrics["bits_per_byte"] = Pair(ce.sum / math.log(2), counted)
    one, reduced = jnp.ones((), jnp.float32), memory.reduced
    if reduced is None:
      return LossOutput(Pair(total * weight, weight), metrics)

    def as_float(x):
      return x.astype(jnp.float32)

    observed = {}
    if reduced.gate_BL is not None:
      deleted = as_float(jnp.sum(~reduced.keep_BL & real_BL))
      observed["deleted"] = Pair(deleted, as_float(jnp.sum(real_BL)))
    if reduced.logits_BL is not None:
      R = gate_regulariser(
        self.regulariser, reduced.gate_BL, reduced.logits_BL, real_BL, model.cfg.reduction.tau
      )
      active = state["step"] >= self.delay
      total += jnp.where(active, state["alpha"], 0.0) * R
      if any(self.entropy):
        total += jnp.where(active, entropy_regulariser(reduced.gate_BL, *self.entropy), 0.0)
      metrics |= {"gate_mean": Pair(R * weight, weight), "alpha": Pair(state["alpha"], one)}
    if measure:
      total += self.beta * S
      metrics["score_excess"] = Pair(S * weight, weight)
    if "loss" in reduced.extra:
      total += reduced.extra["loss"]
      metrics["boundary_loss"] = Pair(reduced.extra["loss"] * weight, weight)
    fit, more = self._fit(reduced, mode)
    return LossOutput(Pair(total * weight, weight), metrics | observed | more, fit, observed)

  def _fit(self, reduced, mode) -> tuple[Fit, dict[str, Pair]]:
    """(how the kept tokens fitted, what of it is reported)."""
    one, n = jnp.ones((), jnp.float32), 1 if mode.hard else self.rows_per_buffer
    # Of a soft step: what it would have needed, so that a hard one that follows finds its bucket.
    need_B = jnp.sum(reduced.count_B.astype(jnp.float32).reshape(-1, n), axis=1)
    lost_B = jnp.any(reduced.overflow_B.reshape(-1, n), axis=1).astype(jnp.float32)
    largest = jnp.max(need_B)
    reported = {"kept_max": Pair(largest, one)}
    if self.overflow != "drop":
      return Fit(jnp.sum(lost_B), largest[None]), reported
    excess_B = lost_B * (need_B - reduced.h_BCD.shape[1])
    return Fit(jnp.zeros((), jnp.float32), largest[None]), reported | {
      "dropped_rows": Pair(jnp.sum(lost_B), one),
      "dropped_tokens": Pair(jnp.sum(excess_B), one),
    }


def accuracies(logits_BTV, targets_BT, w_BT) -> dict[str, Pair]:
  """Teacher-forced: tokens that are the most likely ones, and rows all of whose tokens are."""
  counted_BT = w_BT > 0
  right_BT = jnp.argmax(logits_BTV, -1) == targets_BT

  def count(x):
    return jnp.sum(x).astype(jnp.float32)

  rows_B = jnp.any(counted_BT, axis=1)
  return {
    "accuracy": Pair(count(right_BT & counted_BT), count(counted_BT)),
    "sequence_accuracy": Pair(
      count(jnp.all(right_BT | ~counted_BT, axis=1) & rows_B), count(rows_B)
    ),
  }
