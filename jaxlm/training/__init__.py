"""State, train step, loop, optimisers, checkpoints, metrics."""

from typing import TYPE_CHECKING

from jaxlm import lazy

if TYPE_CHECKING:
  from jaxlm.training.building import build as build
  from jaxlm.training.config import (
    EvalConfig as EvalConfig,
  )
  from jaxlm.training.config import (
    RunConfig as RunConfig,
  )
  from jaxlm.training.config import (
    TrainConfig as TrainConfig,
  )
  from jaxlm.training.config import (
    load_config as load_config,
  )
  from jaxlm.training.config import (
    resolved as resolved,
  )
  from jaxlm.training.config import (
    run_config as run_config,
  )
  from jaxlm.training.optimizers import SGD as SGD
  from jaxlm.training.optimizers import AdamW as AdamW
  from jaxlm.training.optimizers import Lion as Lion
  from jaxlm.training.optimizers import Muon as Muon
  from jaxlm.training.run import Result as Result
  from jaxlm.training.run import train as train
  from jaxlm.training.schedules import (
    Constant as Constant,
  )
  from jaxlm.training.schedules import (
    Cosine as Cosine,
  )
  from jaxlm.training.schedules import (
    InverseSqrt as InverseSqrt,
  )
  from jaxlm.training.schedules import (
    Linear as Linear,
  )
  from jaxlm.training.schedules import (
    WarmupStableDecay as WarmupStableDecay,
  )

_NAMES = lazy.by_name(
  {
    "jaxlm.training.config": "EvalConfig RunConfig TrainConfig load_config resolved run_config",
    "jaxlm.training.building": "build",
    "jaxlm.training.optimizers": "SGD AdamW Lion Muon",
    "jaxlm.training.run": "Result train",
    "jaxlm.training.schedules": "Constant Cosine InverseSqrt Linear WarmupStableDecay",
  }
)
__getattr__, __dir__ = lazy.attributes(__name__, _NAMES)
__all__ = list(_NAMES)
