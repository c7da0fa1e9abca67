"""Weights with their model, on disk: the jaxlm weights folder, and the parameters of a run's checkpoint.

A weights folder holds `model.json` (the model's configuration, as under `model` in a config file) and
`model.safetensors` (or shards) whose names are the paths in the parameter tree, 'blocks/mixer/w_q'. Nothing else is
needed to rebuild the model, and any safetensors reader can open it.
"""

import dataclasses
import json
import pathlib
import typing

import numpy as np

from jaxlm.config import ConfigError, Kinds
from jaxlm.interop.huggingface.files import CheckpointFileError, read_json, read_weights, write_weights
from jaxlm.interop.huggingface.table import WeightsError, flatten, unflatten

FORMAT = {"format": "jaxlm weights", "version": 1}


def tagged(value, hint=None):
  """The plain mapping that `config.build` reads back: dataclasses as mappings, members of a union with their kind."""
  if dataclasses.is_dataclass(value):
    hints = typing.get_type_hints(type(value), include_extras=True)
    kinds = _kinds_in(hint)
    tag = {"kind": kinds.kind_of(value)} if kinds else {}
    return tag | {f.name: tagged(getattr(value, f.name), hints[f.name])
                  for f in dataclasses.fields(value) if f.init}
  if isinstance(value, (tuple, list)):
    return [tagged(v, hint) for v in value]
  if isinstance(value, dict):
    return {k: tagged(v, hint) for k, v in value.items()}
  return value


def _kinds_in(hint) -> Kinds | None:
  """The union that a type hint names, also inside `tuple[...]` or `... | None`."""
  for arg in typing.get_args(hint):
    found = arg if isinstance(arg, Kinds) else _kinds_in(arg)
    if found is not None:
      return found
  return None


def read_model(mapping, where: str):
  """A model's dataclass from the mapping under `model`."""
  from jaxlm.models import MODELS
  try:
    return MODELS.build(mapping, "model")
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from None


def expected_shapes(model) -> dict[str, tuple[int, ...]]:
  """{path: shape} of the parameters that the model declares; nothing is allocated."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  abstract = jax.eval_shape(model.build().init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  return {path: leaf.shape for path, leaf in flatten(nn.unbox(abstract)["params"]).items()}


def check_params(model, params, where: str) -> None:
  """Raises WeightsError unless the tree has exactly the names and shapes that the model declares."""
  want, got = expected_shapes(model), {k: tuple(v.shape) for k, v in flatten(params).items()}
  lines = [f"  missing {k}" for k in want if k not in got] + [f"  left over {k}" for k in got if k not in want] + [
      f"  {k} has shape {got[k]}, wanted {want[k]}" for k in want if k in got and got[k] != want[k]]
  if lines:
    raise WeightsError(f"{where} does not hold the parameters of its model:\n" + "\n".join(lines))


def save(folder, model, params, *, source: str = "") -> list[pathlib.Path]:
  """Writes a weights folder. model: a model config; params: nested tree of arrays. Returns the files."""
  from jaxlm.models import MODELS
  folder = pathlib.Path(folder)
  files = write_weights(folder, {path: np.asarray(value) for path, value in flatten(params).items()})
  mapping = {"kind": MODELS.kind_of(model)} | tagged(model)
  (folder / "model.json").write_text(json.dumps(FORMAT | {"source": source, "model": mapping}, indent=2) + "\n")
  return [folder / "model.json", *files]


def load(folder):
  """(model config, params as numpy) of a weights folder, checked against each other."""
  folder = pathlib.Path(folder)
  document = read_json(folder / "model.json")
  if document.get("format") != FORMAT["format"] or document.get("version") != FORMAT["version"]:
    raise CheckpointFileError(f"{folder / 'model.json'} is not version {FORMAT['version']} of a {FORMAT['format']} "
                              f"folder (format {document.get('format')!r}, version {document.get('version')!r})")
  if "model" not in document:
    raise CheckpointFileError(f"{folder / 'model.json'} has no 'model'")
  model = read_model(document["model"], str(folder / "model.json"))
  state = read_weights(folder)
  params = unflatten({name: state[name] for name in state})
  check_params(model, params, str(folder))
  return model, params
