"""The configuration that belongs to a trained model's folder, for commands that read it."""

from collections.abc import Mapping
from typing import Any

from jaxlm.checkpoint.opening import run_mapping
from jaxlm.checkpoint.weights_folder import is_weights_folder, read_document
from jaxlm.config import ConfigError
from jaxlm.training.config import RunConfig, configured, load_config, plain, run_config


def config_of(folder, spec=None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
  """The configuration of a run folder, or `spec`'s; of a weights folder `spec`'s with the folder's
  own model.
  """
  if is_weights_folder(folder):
    if spec is None:
      raise ConfigError(
        f"{folder} is a weights folder and says nothing about text: give --config=FILE whose `data` it is to "
        f"read with; the model is the folder's own"
      )
    return run_config(
      load_config(
        plain(load_config(spec)) | {"model": read_document(folder)["model"]},
        overrides,
        trusted=False,
      )
    )
  return configured(spec or run_mapping(folder), overrides, trusted=spec is not None)
