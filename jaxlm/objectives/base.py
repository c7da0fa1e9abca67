"""The contract of objectives. The trainer knows this file and no model's name.

Every metric is a `Pair` (sum, weight): micro-batches, padding and hosts are added up before
anything is divided, so none of them can bias a mean. The minimised quantity is loss.sum /
loss.weight over the whole global batch; with gradient accumulation the sums' gradients are added
and divided by the total weight once. Axes: S what is counted for a bucket.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError
from jaxlm.objectives.frozen import TrainedModel

PyTree = Any


class Pair(NamedTuple):
  """A mean that has not been taken yet: float32 scalars `sum` and `weight`."""

  sum: jax.Array
  weight: jax.Array

  def mean(self):
    return self.sum / jnp.maximum(self.weight, 1e-9)

  def __add__(self, other):  # NamedTuple concatenates otherwise
    return Pair(self.sum + other.sum, self.weight + other.weight)


class Fit(NamedTuple):
  """How a batch fitted its bucket. overflow: float32 scalar, how much did not fit, 0 if all did;
  more than 0 makes the trainer redo the step in a larger bucket. need_S: float32, the capacity that
  would have held it, per stage.
  """

  overflow: jax.Array
  need_S: jax.Array

  def __add__(self, other):
    """Of two micro-batches: what did not fit adds up, and the larger need decides."""
    return Fit(self.overflow + other.overflow, jnp.maximum(self.need_S, other.need_S))


class LossOutput(NamedTuple):
  """What `Objective.loss` returns.

  loss: what is minimised. metrics: what is reported, by name; nothing reads them but people. fit:
  of an objective with buckets, else None. observed: a dict of Pairs that `update_state` reads, such
  as the rate that a controller steers.
  """

  loss: Pair
  metrics: dict[str, Pair]
  fit: Fit | None = None
  observed: Mapping[str, Pair] = {}

  def __add__(self, other):
    """Of two micro-batches of one step; both have the same fields."""
    return LossOutput(
      self.loss + other.loss,
      {name: pair + other.metrics[name] for name, pair in self.metrics.items()},
      None if self.fit is None else self.fit + other.fit,
      {name: pair + other.observed[name] for name, pair in self.observed.items()},
    )


class Objective:
  """Base of objective configs (frozen dataclasses). Override `loss`; the rest has defaults.

  scores: what the model must score (`jaxlm.models.base.ModelConfig.scores`). batch_form: what the
  batches must be (`jaxlm.data.base.BATCH_FORMS`). rows_per_group: neighbouring rows that belong
  together, such as the two answers of a pair; the data must make groups of so many. special_tokens:
  names of those that `loss` reads; the data own them. A configuration with another model or other
  data is refused before anything is built.

  former_fields: {name of a field that there was: a sentence that says what to write instead}.
  """

  scores: ClassVar[str] = "next_token"
  batch_form: ClassVar[str] = "causal"
  rows_per_group: ClassVar[int] = 1
  special_tokens: ClassVar[tuple[str, ...]] = ()
  former_fields: ClassVar[Mapping[str, str]] = {}

  def mask_token(self) -> int | None:
    """The id that stands for a masked token, where the objective has one that the data do not own."""
    return None

  def check(self, cfg) -> None:
    """Raises ConfigError for what does not fit the other sections of `cfg` (a RunConfig)."""

  #: Static choices (array capacities), smallest first; () when shapes never depend on data. The
  #: step is compiled once per choice. If the loss's `fit.overflow` is above 0 the update is not
  #: applied on device and the loop redoes the same batch in a larger bucket (what next_bucket says,
  #: at least the next), so training is exact. With `bucketed_training` False only evaluation has
  #: buckets, and training never waits for the device. model: its config.
  def buckets(self, model, batch_shape: tuple[int, int]) -> tuple:
    return ()

  @property
  def bucketed_training(self) -> bool:
    return True

  def first_bucket(self, num_buckets: int) -> int:
    """Index of the bucket that a new run begins with."""
    return 0

  def next_bucket(self, fit: Fit, state: PyTree, buckets: tuple):
    """int32 index of the bucket for the next step, from this step's global `fit` and the state
    before it. Traced.
    """
    raise NotImplementedError(f"{type(self).__name__} has buckets and does not choose among them")

  def init_state(self) -> PyTree:
    """State carried in the train state and checkpointed (a controller, say). Empty by default."""
    return {}

  def update_state(self, state: PyTree, output: LossOutput) -> PyTree:
    """New state, once per optimiser step, from the globally reduced output. Traced."""
    return state

  def after_micro_batch(self, state: PyTree, output: LossOutput) -> PyTree:
    """The state that the next micro-batch of the same step sees: as released code has it, where
    that is asked for. Traced.
    """
    return state

  @property
  def frozen(self) -> dict[str, TrainedModel]:
    """Trained models that `loss` reads and that stay as they are (a reference, a teacher, a judge),
    by name.
    """
    return {}

  def check_frozen(self, name: str, model, cfg) -> None:
    """Raises ConfigError for a frozen model that cannot serve. model: its config. cfg: RunConfig.

    As it stands: it scores what the objective's own model scores, over the same number of tokens.
    """
    where = f"objective.{name} = {self.frozen[name].folder!r}"
    if model.scores != self.scores:
      raise ConfigError(
        f"{where} holds a model that scores {model.scores}, and this objective needs one that "
        f"scores {self.scores}; name another run"
      )
    if model.vocab_size != cfg.model.vocab_size:
      raise ConfigError(
        f"{where} holds a model of {model.vocab_size} tokens, and model.vocab_size = "
        f"{cfg.model.vocab_size}: their logits cannot be compared; name a run of the same vocabulary"
      )

  def train_flops_per_token(self, model, seq_len: int) -> float | None:
    """FLOPs of one token, forward and backward, where the objective decides how many tokens its
    parts see. model: its config. None: the model's own count, or that of its parameters.
    """
    return None

  def loss(
    self, model, params: PyTree, batch: dict, key, state: PyTree, *, train: bool, bucket=None
  ) -> LossOutput:
    """Loss and metrics of one (micro-)batch. Pure; `key` is already folded with step and
    micro-batch.

    model: the Linen module; params: the tree under "params". batch: int32 `tokens`, `targets`,
    `segment_ids`, `positions` and float32 `loss_weights`, each (B, T), plus what the data source
    adds. Two more keyword arguments come where the class asks for them: `special_tokens`
    (`jaxlm.data.special_tokens.SpecialTokens`) if it names some, `frozen` ({name:
    `jaxlm.objectives.frozen.FrozenModel`}) if its `frozen` is not empty.
    """
    raise NotImplementedError(f"{type(self).__name__} defines no loss")
