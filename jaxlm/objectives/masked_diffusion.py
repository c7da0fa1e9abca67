"""Masked (absorbing) diffusion with the log-linear schedule.

Axes: B batch, T position. docs/specs/ilm.md, section 6.2.

  k = 1 - exp(-10);  sigma(t) = -log(1 - k t);  p(masked at t) = 1 - exp(-sigma) = k t;  w(t) =
  sigma'(t) / (exp(sigma) - 1) = 1/t
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.objectives.base import LossOutput, Objective, Pair

K = 1 - math.exp(-10)
MIN_T = 1e-3


def total_noise(t):
  """sigma(t)."""
  return -jnp.log1p(-K * t)


def noise_rate(t):
  """sigma'(t)."""
  return K / (1 - K * t)


def masked_nll(log_prob_BT, masked_BT, t_B, row_weight_B=None):
  """(sum over masked tokens of w(t) (-log p), number of masked tokens)."""
  weight_B = noise_rate(t_B) / jnp.expm1(total_noise(t_B))
  row_B = jnp.ones_like(t_B) if row_weight_B is None else row_weight_B
  masked_BT = masked_BT * row_B[:, None]
  return Pair(
    jnp.sum(jnp.where(masked_BT > 0, -log_prob_BT, 0.0) * masked_BT * weight_B[:, None]),
    jnp.sum(masked_BT),
  )


@dataclasses.dataclass(frozen=True)
@checked
class MaskedDiffusion(Objective):
  """loss of one t ~ U(MIN_T, 1) per example.

  variant "official": the mean over the *masked tokens of the batch* of w(t) (-log p), pads
  predicted like tokens and seen by attention, although sampling hides them. "corrected": the sum
  over masked tokens per example divided by the number that may be masked (the bound on the
  likelihood per token), pads neither predicted nor seen.
  The absorbing state is the data's mask token.

  Batch: `tokens` (whole sequences), `segment_ids` (0: padding), `maskable` int32 (B, T),
  `loss_weights` (B, 1).
  """

  scores: ClassVar[str] = "masked_tokens"
  batch_form: ClassVar[str] = "masked_diffusion"
  special_tokens: ClassVar[tuple[str, ...]] = ("mask",)
  former_fields: ClassVar[Mapping[str, str]] = {
    "mask": "the data say which token is the mask; leave it out"
  }

  variant: Literal["official", "corrected"] = "official"

  def loss(self, model, params, batch, key, state, *, train, bucket=None, special_tokens):
    tokens_BT, w_B = batch["tokens"], batch["loss_weights"][:, 0]
    time_key, mask_key = jax.random.split(key)
    t_B = MIN_T + (1 - MIN_T) * jax.random.uniform(time_key, tokens_BT.shape[:1])
    maskable_BT = batch["maskable"] != 0
    keys_BT = None
    if self.variant == "corrected":
      keys_BT = batch["segment_ids"] != 0
      maskable_BT = maskable_BT & keys_BT
    masked_BT = maskable_BT & (jax.random.uniform(mask_key, tokens_BT.shape) < K * t_B[:, None])
    log_prob_BT, _ = model.apply(
      {"params": params},
      jnp.where(masked_BT, special_tokens.mask, tokens_BT),
      tokens_BT,
      total_noise(t_B),
      keys_BT,
      method="score",
    )
    loss = masked_nll(log_prob_BT, masked_BT.astype(jnp.float32), t_B, w_B)
    if self.variant == "corrected":
      loss = Pair(loss.sum, jnp.sum(maskable_BT * w_B[:, None]))
    return LossOutput(loss, {"loss": loss})
