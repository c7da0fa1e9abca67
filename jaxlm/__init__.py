"""jaxlm: research language models in JAX, one set of parts, checked against the authors' arrays.

  jaxlm.load_config("configs/carope/tiny.py", {"model.d_model": 64})   a configuration
  jaxlm.build(config)                                                  its model, a Flax module
  jaxlm.train(config, "runs/tiny")                                     train it, or resume the run
  jaxlm.open_model("runs/tiny")                                        config and parameters of a run
  jaxlm.register("mixer", "mine", "my_package.my_module:MyConfig")     a part of your own

Parts: `jaxlm.models`, `jaxlm.layers`, `jaxlm.objectives`, `jaxlm.data`, `jaxlm.kernels`.
"""

from typing import TYPE_CHECKING

from jaxlm import lazy

if TYPE_CHECKING:
  from jaxlm.checkpoint.opening import open_model as open_model
  from jaxlm.parts import register as register
  from jaxlm.training.building import build as build
  from jaxlm.training.config import load_config as load_config
  from jaxlm.training.config import run_config as run_config
  from jaxlm.training.run import train as train

__version__ = "0.1.0"

_NAMES = lazy.by_name(
  {
    "jaxlm.checkpoint.opening": "open_model",
    "jaxlm.parts": "register",
    "jaxlm.training.building": "build",
    "jaxlm.training.config": "load_config run_config",
    "jaxlm.training.run": "train",
  }
)
__getattr__, __dir__ = lazy.attributes(__name__, _NAMES)
__all__ = list(_NAMES)
