"""One way to trained parameters: `open_model` reads a run folder or a weights folder, on a disk or in an object store."""

import dataclasses
import functools
import logging
from typing import Any

import jax

from jaxlm.checkpoint.errors import CheckpointFileError
from jaxlm.checkpoint.locations import folder_path, read_json
from jaxlm.checkpoint.model_json import read_model
from jaxlm.checkpoint.placed import abstract_params
from jaxlm.checkpoint.reading import newest_config, restore_params
from jaxlm.checkpoint.weights_folder import is_weights_folder, load, place, read_arrays
from jaxlm.config import ConfigError
from jaxlm.data import DATA
from jaxlm.parallel.rules import path_name


@dataclasses.dataclass(frozen=True)
class Opened:
  """A trained model. `config, params, data = open_model(folder)` takes it apart.

  config: the model's configuration; params: its parameters, a nested dict of arrays. step: of a run's checkpoint, None for
  a weights folder. source: the folder and step, for people. run: the whole configuration of the run, {} for a weights folder.
  """

  config: Any
  params: Any
  folder: str
  step: int | None = None
  source: str = ""
  run: dict = dataclasses.field(default_factory=dict, repr=False)

  def __iter__(self):
    return iter((self.config, self.params, self.data))

  @functools.cached_property
  def data(self):
    """The data config that the run was trained on; None for a weights folder."""
    return DATA.build(self.run["data"], "data") if "data" in self.run else None

  @functools.cached_property
  def tokenizer(self):
    """The tokenizer of the run's data, or of the files beside the weights; None where there is none."""
    if self.data is not None:
      return self.data.load_tokenizer() if self.data.has_text else None
    if (folder_path(self.folder) / "tokenizer.json").is_file():
      from jaxlm.data.tokenizers.bpe import BPEFileConfig
      return BPEFileConfig(self.folder).load()
    return None


def open_model(folder, *, step: int | None = None, ema: bool = False, model=None, mesh=None) -> Opened:
  """The model in a run folder or in a weights folder (`jaxlm convert`), its checksums compared.

  folder: a path or an address such as gs://bucket/run. step: of a run; None: the newest that is not damaged. ema: the
  average of the parameters. model: a config to use in place of the folder's own, for the same parameters. mesh: the
  parameters are sharded over it by the model's rules; None: one device. A damaged newer step is logged as a warning.

  ConfigError: no such folder, step or average, or parameters that do not fit `model`. CheckpointError,
  CheckpointFileError: damaged files.
  """
  path = folder_path(folder)
  if is_weights_folder(path):
    if step is not None or ema:
      raise ConfigError(f"{folder} is a weights folder: it has no steps and no average to choose from")
    if model is None:
      model, _ = load(path)
    return Opened(model, place(read_arrays(path), abstract_params(model, mesh), str(folder)), str(folder), source=str(folder))
  run = run_mapping(path)
  if model is None:
    model = read_model(run.get("model"), str(path / "config.json"))
  restored = restore_params(path, step=step, ema=ema, params=abstract_params(model, mesh))
  for line in restored.lines:
    logging.getLogger("jaxlm").warning(line)
  source = f"{folder}, step {restored.step}" + (", average" if ema else "")
  return Opened(model, restored.params, str(folder), restored.step, source, run)


def initial_params(folder, params):
  """Parameters to begin with, from a run's newest good step or a weights folder. params: abstract tree with shardings."""
  what = f"train.init_from = {str(folder)!r}"
  if is_weights_folder(folder):
    return place(read_arrays(folder), params, what)
  stored = restore_params(folder).params
  return place({path_name(path): x for path, x in jax.tree.leaves_with_path(stored)}, params, what)


def run_mapping(folder) -> dict:
  """A run's resolved configuration: its config.json, or where that is lost or damaged, the newest checkpoint's note."""
  path = folder_path(folder)
  if not (path / "config.json").is_file() and not (path / "checkpoints").is_dir():
    what = ("is neither a run folder (config.json, checkpoints/) nor a weights folder (model.json, model.safetensors)"
            if path.exists() else "does not exist")
    raise CheckpointFileError(f"{path} {what}" + (
        "; a Hugging Face folder is converted first: jaxlm convert --from hf DIR --to OUT"
        if list(path.glob("*.safetensors")) or list(path.glob("*.bin")) else ""))
  try:
    return read_json(path / "config.json")
  except (ConfigError, OSError):
    noted = newest_config(path)
    if noted is None:
      raise
    return noted
