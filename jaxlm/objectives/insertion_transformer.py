"""The Insertion Transformer: every slot predicts its own missing tokens, or that it is finished.

Axes: B batch, T position, M targets. docs/specs/ilm.md, section 6.3.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.models.score import lexicon_of
from jaxlm.objectives.base import LossOutput, Objective, Pair
from jaxlm.objectives.insertion import open_slots
from jaxlm.ranges import NonNegative


def slot_nll(
  log_z_BT, target_BM, slots_BM, missing_BM, num_missing_B, *, eos: int, eos_weight: float = 1.0
):
  """l_t = sum_{m in slot t} w_m (log_z_t - z_m) / (count_t + 1), count without EOS, w = eos_weight
  for EOS. (B, T).

  The + 1 is the release's: it counts an EOS for slots that have tokens, too, where it is not a
  target.
  """
  T = log_z_BT.shape[1]
  counts_BM = (jnp.arange(slots_BM.shape[1])[None] < num_missing_B[:, None]).astype(jnp.float32)
  is_eos_BM = missing_BM == eos
  w_BM = counts_BM * jnp.where(is_eos_BM, eos_weight, 1.0)
  at_BMT = (slots_BM[..., None] == jnp.arange(T)[None, None]).astype(jnp.float32)
  count_BT = jnp.einsum("bm,bmt->bt", counts_BM * ~is_eos_BM, at_BMT)
  mass_BT, hit_BT = (jnp.einsum("bm,bmt->bt", x, at_BMT) for x in (w_BM, w_BM * target_BM))
  return (mass_BT * log_z_BT - hit_BT) / (count_BT + 1)


@dataclasses.dataclass(frozen=True)
@checked
class InsertionTransformer(Objective):
  """loss = mean over visible slots (without CLS's) of slot_nll. The data's end token says 'nothing
  missing here'.

  Batch: as objectives.insertion, with EOS among the `missing` of empty slots.
  """

  scores: ClassVar[str] = "inserted_tokens"
  batch_form: ClassVar[str] = "insertion_transformer"
  special_tokens: ClassVar[tuple[str, ...]] = ("eos",)
  former_fields: ClassVar[Mapping[str, str]] = {
    "eos": "the data say which token ends a sequence; leave it out"
  }

  eos_weight: NonNegative = 1.0

  def loss(self, model, params, batch, key, state, *, train, bucket=None, special_tokens):
    n_B, w_B1 = batch["num_missing"][:, 0], batch["loss_weights"]
    slots = model.apply(
      {"params": params},
      batch["tokens"],
      batch["slots"],
      batch["missing"],
      batch["segment_ids"],
      batch["positions"],
      method="score",
      **lexicon_of(model.cfg, batch, train=train),
    )
    nll_BT = slot_nll(
      slots.log_z_BT,
      slots.target_BM,
      batch["slots"],
      batch["missing"],
      n_B,
      eos=special_tokens.eos,
      eos_weight=self.eos_weight,
    )
    w_BT = open_slots(batch["segment_ids"]) * w_B1
    loss = Pair(jnp.sum(w_BT * nll_BT), jnp.sum(w_BT))
    return LossOutput(loss, {"loss": loss})
