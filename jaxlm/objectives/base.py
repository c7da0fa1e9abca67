"""The contract of objectives. The trainer knows this file and no model's name.

Every metric is a `Pair` (sum, weight): micro-batches, padding and hosts are added up before
anything is divided, so none of them can bias a mean. The minimised quantity is loss.sum /
loss.weight over the whole global batch; with gradient accumulation the sums' gradients are added
and divided by the total weight once.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class Pair(NamedTuple):
  """A mean that has not been taken yet: float32 scalars `sum` and `weight`."""

  sum: jax.Array
  weight: jax.Array

  def mean(self):
    return self.sum / jnp.maximum(self.weight, 1e-9)

  def __add__(self, other):  # NamedTuple concatenates otherwise
    return Pair(self.sum + other.sum, self.weight + other.weight)


class Objective:
  """Base of objective configs (frozen dataclasses). Override `loss`; the rest has defaults.

  scores: what the model must score (`jaxlm.models.base.ModelConfig.scores`). batch_form: what the
  batches must be (`jaxlm.data.base.BATCH_FORMS`). A configuration with another model or other data
  is refused before anything is built.
  """

  scores: ClassVar[str] = "next_token"
  batch_form: ClassVar[str] = "causal"

  def check(self, cfg) -> None:
    """Raises ConfigError for what does not fit the other sections of `cfg` (a RunConfig)."""

  #: Static choices (array capacities), smallest first; () when shapes never depend on data. The
  #: step is compiled once per choice. If metrics["overflow"].sum > 0 the update is not applied on
  #: device and the loop redoes the same batch in a larger bucket (what choose_bucket says, at least
  #: the next), so training is exact. With `bucketed_training` False only evaluation has buckets,
  #: and training never waits for the device.
  def buckets(self, batch_shape: tuple[int, int]) -> tuple:
    return ()

  @property
  def bucketed_training(self) -> bool:
    return True

  def first_bucket(self, num_buckets: int) -> int:
    """Index of the bucket that a new run begins with."""
    return 0

  def choose_bucket(self, metrics: dict[str, Pair], current: int) -> int:
    """Index of the bucket for the next step, from this step's globally reduced metrics (host side)."""
    return current

  def init_state(self) -> PyTree:
    """State carried in the train state and checkpointed (a controller, say). Empty by default."""
    return {}

  def update_state(self, state: PyTree, metrics: dict[str, Pair]) -> PyTree:
    """New state, once per optimiser step, from globally reduced metrics. Traced."""
    return state

  def after_micro_batch(self, state: PyTree, metrics: dict[str, Pair]) -> PyTree:
    """The state that the next micro-batch of the same step sees: as released code has it, where
    that is asked for. Traced.
    """
    return state

  def train_flops_per_token(self, model, seq_len: int) -> float | None:
    """FLOPs of one token, forward and backward, where the objective decides how many tokens its
    parts see. model: its
    config. None: the model's own count, or that of its parameters."""
    return None

  def loss(
    self, model, params: PyTree, batch: dict, key, state: PyTree, *, train: bool, bucket=None
  ) -> tuple[Pair, dict[str, Pair]]:
    """(loss, metrics) of one (micro-)batch. Pure; `key` is already folded with step and
    micro-batch.

    model: the Linen module; params: the tree under "params". batch: int32 `tokens`, `targets`,
    `segment_ids`, `positions` and float32 `loss_weights`, each (B, T), plus what the data source
    adds.
    """
    raise NotImplementedError(f"{type(self).__name__} defines no loss")
