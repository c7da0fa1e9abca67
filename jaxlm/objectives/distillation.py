"""Distillation: the student's distribution of the next token follows a teacher's.

Axes: B batch, T time, V vocab. The temperature and its square are those of Hinton et al., 2015,
"Distilling the knowledge in a neural network", section 2.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.models.score import lexicon_of
from jaxlm.objectives.base import LossOutput, Objective, Pair
from jaxlm.objectives.frozen import TrainedModel
from jaxlm.ranges import Fraction, Range


def divergence(teacher_BTV, student_BTV, temperature: float = 1.0):
  """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)) over V. Float32 (B, T)."""
  log_p_BTV = jax.nn.log_softmax(teacher_BTV.astype(jnp.float32) / temperature)
  log_q_BTV = jax.nn.log_softmax(student_BTV.astype(jnp.float32) / temperature)
  return temperature**2 * jnp.sum(jnp.exp(log_p_BTV) * (log_p_BTV - log_q_BTV), axis=-1)


@dataclasses.dataclass(frozen=True)
@checked
class Distillation(Objective):
  """loss = (1 - weight) CE + weight tau^2 KL(teacher^(1/tau) || student^(1/tau)).

  teacher: a run folder or a weights folder, or a mapping {folder, step, ema}; a model of the same
  tokens. weight: 1 leaves the targets out. temperature: tau. Both logits are whole arrays (B, T, V):
  for large vocabularies use train.accumulation. Reports `loss` (CE), `divergence` (with tau^2) and
  `teacher_loss`.
  """

  teacher: str | TrainedModel
  weight: Fraction = 0.5
  temperature: Annotated[float, Range(0, open_low=True)] = 1.0

  @property
  def frozen(self):
    return {"teacher": TrainedModel.of(self.teacher)}

  def loss(self, model, params, batch, key, state, *, train, bucket=None, frozen):
    def logits(network, params):
      return network.apply(
        {"params": params},
        batch["tokens"],
        batch["segment_ids"],
        batch["positions"],
        **lexicon_of(network.cfg, batch, train=train),
      )

    teacher, w_BT = frozen["teacher"], batch["loss_weights"]
    student_BTV, teacher_BTV = logits(model, params), logits(teacher.model, teacher.params)

    # Where the weight is 0 nothing counts, whatever an unused position says.
    def mean(x_BT):
      return Pair(jnp.sum(jnp.where(w_BT > 0, x_BT, 0.0) * w_BT), jnp.sum(w_BT))

    def nll(logits_BTV):
      log_p_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32))
      return -jnp.take_along_axis(log_p_BTV, batch["targets"][..., None], axis=-1)[..., 0]

    loss, apart = (
      mean(nll(student_BTV)),
      mean(divergence(teacher_BTV, student_BTV, self.temperature)),
    )
    metrics = {"loss": loss, "divergence": apart, "teacher_loss": mean(nll(teacher_BTV))}
    total = (1 - self.weight) * loss.sum + self.weight * apart.sum
    return LossOutput(Pair(total, loss.weight), metrics)
