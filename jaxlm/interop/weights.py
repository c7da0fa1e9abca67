"""Weights with their model, on disk: the jaxlm weights folder, and the parameters of a run's checkpoint.

A weights folder holds `model.json` (the model's configuration, as under `model` in a config file) and
`model.safetensors` (or shards) whose names are the paths in the parameter tree, 'blocks/mixer/w_q'. Nothing else is
needed to rebuild the model, and any safetensors reader can open it.
"""

import dataclasses
import pathlib
import typing

import numpy as np

from jaxlm import json_text
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

  from jaxlm.models.base import abstract_params
  return {path: leaf.shape for path, leaf in flatten(nn.unbox(abstract_params(model))).items()}


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
  (folder / "model.json").write_text(json_text.dumps(FORMAT | {"source": source, "model": mapping}, indent=2) + "\n")
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


def load_run(folder, *, step: int | None = None, ema: bool = False):
  """(model config, params as numpy, step) of a run folder; its newest checkpoint unless a step is named."""
  import jax
  import orbax.checkpoint as ocp
  folder = pathlib.Path(folder).absolute()
  config = read_json(folder / "config.json")
  if not (folder / "checkpoints").is_dir() or "model" not in config:
    raise CheckpointFileError(f"{folder} is not a run folder: it holds no checkpoints or its config.json no model")
  model = read_model(config["model"], str(folder / "config.json"))
  manager = ocp.CheckpointManager(folder / "checkpoints", item_handlers={"state": ocp.PyTreeCheckpointHandler()},
                                  options=ocp.CheckpointManagerOptions(read_only=True))
  with manager:
    steps = sorted(manager.all_steps())
    if not steps or (step is not None and step not in steps):
      raise CheckpointFileError(f"{folder} has no complete checkpoint{'' if step is None else f' of step {step}'}; "
                                f"steps: {', '.join(map(str, steps)) or 'none'}")
    step, name = steps[-1] if step is None else step, "ema" if ema else "params"
    saved = manager.item_metadata(step)["state"]
    saved = getattr(saved, "tree", saved)
    if saved.get(name) is None:
      raise CheckpointFileError(f"{folder} keeps no {name} in its checkpoints" + ("; set train.ema_decay" if ema else ""))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    item = {name: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved[name])}
    restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(
        item=item, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(item))))
    params = jax.tree.map(np.asarray, restored.state[name])
  check_params(model, params, f"step {step} of {folder}")
  return model, params, step


def load_any(folder, *, step: int | None = None, ema: bool = False):
  """(model config, params, where they came from) of a weights folder or a run folder."""
  folder = pathlib.Path(folder)
  if (folder / "model.json").is_file():
    if step is not None or ema:
      raise CheckpointFileError(f"{folder} is a weights folder: it has no steps and no average to choose from")
    return *load(folder), str(folder)
  if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
    model, params, step = load_run(folder, step=step, ema=ema)
    return model, params, f"{folder}, step {step}" + (", average" if ema else "")
  raise CheckpointFileError(f"{folder} is neither a run folder (config.json, checkpoints/) nor a weights folder "
                            f"(model.json, model.safetensors)")
