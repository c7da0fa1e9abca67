"""Models that a loss reads and that no step changes: a reference, a teacher, a judge.

An objective has a field for each, `teacher: str | TrainedModel`, and lists them in its property
`frozen`. The trainer opens them (`jaxlm.training.frozen`), lays them out like the model, and hands
them to the loss beside the state. They are never saved with it.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn

from jaxlm.config import checked
from jaxlm.ranges import Natural


@dataclasses.dataclass(frozen=True)
@checked
class TrainedModel:
  """folder: a run folder or a weights folder, as `jaxlm.open_model` takes it. step: of a run; None:
  the newest one when this run begins, and the same one ever after. ema: the average of the
  parameters.
  """

  folder: str
  step: Natural | None = None
  ema: bool = False

  @classmethod
  def of(cls, value: "str | TrainedModel") -> "TrainedModel":
    """A folder's name stands for its newest step."""
    return cls(value) if isinstance(value, str) else value


class FrozenModel(NamedTuple):
  """`model.apply({"params": params}, ...)`. No gradient reaches `params`."""

  model: nn.Module
  params: Any
