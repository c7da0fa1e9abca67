"""Insertion language modelling: every missing token at once, in one softmax over slots and
vocabulary.

Axes: B batch, T position, M missing tokens, V vocab. docs/specs/ilm.md, section 2.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.models.score import lexicon_of
from jaxlm.objectives.base import LossOutput, Objective, Pair
from jaxlm.ranges import Inside, NonNegative

STOP, CONTINUE = 0, 1  # of the stop head's two logits


def joint_nll(log_z_BT, open_BT, target_BM, num_missing_B):
  """-1/n sum_m log p(slot_m, token_m),  log p = z[slot, token] - log sum_{t open} exp(log_z_t);  0
  where n = 0.

  log_z_BT: float32 row partitions; open_BT: bool, slots of the distribution; target_BM: logits of
  the missing tokens, the first n of each row count. Returns float32 (B,). A slot's count of a token
  never becomes an array.
  """
  some_B = num_missing_B > 0
  # A row without an open slot has nothing missing: whatever stands in for it is multiplied away,
  # but must be finite.
  open_BT = open_BT | ~jnp.any(open_BT, axis=1, keepdims=True)
  log_z_B = jax.nn.logsumexp(log_z_BT, axis=1, where=open_BT)
  first_BM = jnp.arange(target_BM.shape[1])[None] < num_missing_B[:, None]
  mean_B = jnp.sum(jnp.where(first_BM, target_BM, 0.0), axis=1) / jnp.maximum(num_missing_B, 1)
  return jnp.where(some_B, log_z_B - mean_B, 0.0)


def stop_nll(stop_B2, num_missing_B, class_weight: float | None = None):
  """w_y (-log softmax(s)_y), y = 0 (stop) iff nothing is missing; w = (a, 1 - a) or 1.

  float32 (B,).
  """
  label_B = jnp.where(num_missing_B > 0, CONTINUE, STOP)
  nll_B = -jnp.take_along_axis(
    jax.nn.log_softmax(stop_B2.astype(jnp.float32)), label_B[:, None], axis=1
  )[:, 0]
  return (
    nll_B
    if class_weight is None
    else nll_B * jnp.where(label_B == STOP, class_weight, 1 - class_weight)
  )


def open_slots(segment_ids_BT, blocked_BT=None):
  """Bool (B, T): slots right of a token that is not the first (CLS), less the blocked ones."""
  open_BT = (segment_ids_BT != 0) & (jnp.arange(segment_ids_BT.shape[1]) > 0)[None]
  return open_BT if blocked_BT is None else open_BT & ~blocked_BT


def packed_nll(log_z_BT, open_BT, target_BM, weights_BM):
  """sum_m w_m (J - z_m), J over the whole row, w_m = 1 / missing of m's segment: mass k for k
  segments (spec 2.3).
  """
  log_z_B1 = jax.nn.logsumexp(log_z_BT, axis=1, where=open_BT, keepdims=True)
  return jnp.sum(weights_BM * (log_z_B1 - target_BM), axis=1)


@dataclasses.dataclass(frozen=True)
@checked
class Insertion(Objective):
  """loss = mean over examples of joint_nll + stop_weight * stop_nll.

  stop_class_weight: a in w = (a, 1 - a) for (stop, continue); None weighs both 1. use_constraint:
  slots that the batch calls `blocked` leave the softmax (and are shown to a model with
  slot_embedding).

  Batch: compacted `tokens`, `segment_ids`, `positions`; `slots`, `missing` int32 (B, M), of which
  the first `num_missing` (B, 1) count; `blocked` (B, T), not 0 where closed, if use_constraint
  (data.constraint emits it); `loss_weights` (B, 1), one per example.
  """

  scores: ClassVar[str] = "inserted_tokens"
  batch_form: ClassVar[str] = "insertion"

  stop_weight: NonNegative = 1.0
  stop_class_weight: Inside | None = None
  use_constraint: bool = False

  def check(self, cfg) -> None:
    if self.use_constraint and not cfg.data.constraint:
      raise ConfigError(
        "objective.use_constraint = True reads which slots are closed, but the batches have no 'blocked'; set "
        "data.constraint = True (data of form 'insertion': star_graphs, zebra, passages)"
      )

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    blocked_BT = batch["blocked"] != 0 if self.use_constraint else None
    n_B, w_B = batch["num_missing"][:, 0], batch["loss_weights"][:, 0]
    slots = model.apply(
      {"params": params},
      batch["tokens"],
      batch["slots"],
      batch["missing"],
      batch["segment_ids"],
      batch["positions"],
      blocked_BT,
      method="score",
      **lexicon_of(model.cfg, batch, train=train),
    )

    def mean(x_B, w_B=w_B):
      return Pair(jnp.sum(w_B * x_B), jnp.sum(w_B))

    token_B = joint_nll(
      slots.log_z_BT, open_slots(batch["segment_ids"], blocked_BT), slots.target_BM, n_B
    )
    metrics = {"token": mean(token_B)}
    total_B = token_B
    if slots.stop_B2 is not None:
      stop_B = stop_nll(slots.stop_B2, n_B, self.stop_class_weight)
      right_B = (jnp.argmax(slots.stop_B2, axis=1) == jnp.where(n_B > 0, CONTINUE, STOP)).astype(
        jnp.float32
      )
      metrics |= {"stop": mean(stop_B), "stop_accuracy": mean(right_B)}
      total_B = total_B + self.stop_weight * stop_B
    return LossOutput(mean(total_B), metrics)
