"""Weights folders of `jaxlm convert` (model.json, safetensors in one file or shards) where a run's folder would do."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxlm.config import ConfigError
from jaxlm.training.config import RunConfig, load_config, plain, run_config
from jaxlm.training.folder import folder_path, read_json


def is_weights_folder(folder) -> bool:
  return (folder_path(folder) / "model.json").is_file()


def read_weights(folder) -> dict[str, Any]:
  """{path in the parameter tree: array}."""
  from safetensors.numpy import load_file

  files = sorted(folder_path(folder).glob("*.safetensors"))
  if not files:
    raise ConfigError(f"{folder} is a weights folder without weights: it holds no .safetensors file")
  return {name: array for file in files for name, array in load_file(file).items()}


def place(stored: Mapping[str, Any], params, what: str):
  """The stored arrays as the tree `params` (abstract, with shardings and types). what: the subject of a refusal."""
  name_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  shapes = {name_of(path): x.shape for path, x in jax.tree.leaves_with_path(params)}
  found = {name: x.shape for name, x in stored.items()}
  wrong = sorted(name for name in {*found, *shapes} if found.get(name) != shapes.get(name))
  if wrong:
    name = wrong[0]
    raise ConfigError(f"{what} does not fit the model in {len(wrong)} parameters, among them {name}: "
                      f"{found.get(name, 'absent')} there, {shapes.get(name, 'absent')} here")
  return jax.tree_util.tree_map_with_path(
      lambda path, x: jax.device_put(stored[name_of(path)].astype(x.dtype), x.sharding), params)


def config_of(folder, spec=None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
  """The configuration of a run folder, or `spec`'s; of a weights folder `spec`'s with the folder's own model."""
  path = folder_path(folder)
  if is_weights_folder(folder):
    if spec is None:
      raise ConfigError(f"{folder} is a weights folder and says nothing about text: give --config=FILE whose `data` it is to "
                        f"read with; the model is the folder's own")
    model = read_json(path / "model.json").get("model")
    return run_config(load_config(plain(load_config(spec)) | {"model": model}, overrides))
  if spec is None and not (path / "config.json").is_file():
    raise ConfigError(f"{folder} is not a run folder: " + ("it holds no config.json" if path.exists() else "it does not exist"))
  return run_config(load_config(spec or read_json(path / "config.json"), overrides))
