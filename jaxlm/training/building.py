"""From a configuration to its model."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxlm.config import ConfigError
from jaxlm.models import MODELS
from jaxlm.models.base import ModelConfig
from jaxlm.training.config import RunConfig, load_config, plain


def build(config: Any) -> nn.Module:
  """The Flax module of a configuration's model; parameters come from its `init`.

  config: a model's (`DecoderConfig(...)`, or {"kind": "decoder", ...}) or a whole run's (what
  `load_config` returns, a RunConfig, or the path of its file). ConfigError: anything else.

    model = jaxlm.build(jaxlm.load_config("configs/carope/tiny.py"))
    variables = model.init(jax.random.key(0), tokens_BT)
    logits_BTV = model.apply(variables, tokens_BT)
  """
  if isinstance(config, (str, pathlib.Path)):
    config = load_config(config)
  if isinstance(config, RunConfig):
    config = config.model
  config = plain(config)
  if isinstance(config, Mapping):
    config = MODELS.build(config.get("model", config), "model")
  if not isinstance(config, ModelConfig):
    raise ConfigError(
      f"{type(config).__name__} is no configuration of a model; a layer is made by its own class, as in "
      "LaCT(LaCTConfig(...), d_model=256)"
    )
  return config.build()
