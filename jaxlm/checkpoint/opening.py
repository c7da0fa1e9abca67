"""One way to trained parameters: `open_model` reads a run folder or a weights folder, on a disk or
in an object store.
"""

import dataclasses
import difflib
import functools
import logging
from typing import Any

import jax
import numpy as np

from jaxlm.checkpoint.former_fields import with_present_fields
from jaxlm.checkpoint.json_files import read_json
from jaxlm.checkpoint.locations import folder_path
from jaxlm.checkpoint.model_json import read_model
from jaxlm.checkpoint.placed import abstract_params
from jaxlm.checkpoint.reading import newest_config, restore_params
from jaxlm.checkpoint.trees import flatten
from jaxlm.checkpoint.weights_folder import is_weights_folder, load, place, read_arrays
from jaxlm.config import ConfigError
from jaxlm.data import DATA
from jaxlm.models import MODELS


@dataclasses.dataclass(frozen=True)
class Opened:
  """A trained model. `config, params, data = open_model(folder)` takes it apart.

  config: the model's configuration; params: its parameters, a nested dict of arrays. step: of a
  run's checkpoint, None for a weights folder. source: the folder and step, for people. run: the
  whole configuration of the run, {} for a weights folder.
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
    """The tokenizer of the run's data, or of the files beside the weights; None where there is
    none.
    """
    if self.data is not None:
      return self.data.load_tokenizer() if self.data.has_text else None
    if (folder_path(self.folder) / "tokenizer.json").is_file():
      from jaxlm.data.tokenizers.bpe import BPEFileConfig

      return BPEFileConfig(self.folder).load()
    return None


def open_model(
  folder,
  *,
  step: int | None = None,
  ema: bool = False,
  model=None,
  mesh=None,
  as_stored: bool = False,
) -> Opened:
  """The model in a run folder or in a weights folder (`jaxlm convert`), its checksums compared.

  folder: a path or an address such as gs://bucket/run. step: of a run; None: the newest that is not
  damaged. ema: the average of the parameters. model: a config to use in place of the folder's own,
  for the same parameters. mesh: the parameters are sharded over it by the model's rules; None: one
  device.
  as_stored: NumPy arrays in the types of the files, not jax arrays in those of the model. A damaged
  newer step is logged as a warning.

  ConfigError: no such folder, step or average, or parameters that do not fit `model`.
  CheckpointError,
  CheckpointFileError: damaged files.
  """
  path = folder_path(folder)
  if is_weights_folder(path):
    if step is not None or ema:
      raise ConfigError(
        f"{folder} is a weights folder: it has no steps and no average to choose from"
      )
    own, params = load(path)
    if not as_stored:
      params = place(flatten(params), abstract_params(model or own, mesh), str(folder))
    return Opened(model or own, params, str(folder), source=str(folder))
  run = run_mapping(path)
  if model is None and not isinstance(run.get("model"), dict):
    raise _no_run(path)
  model = read_model(run["model"], str(path / "config.json")) if model is None else model
  restored = _restored(path, step=step, ema=ema, params=abstract_params(model, mesh))
  params = jax.tree.map(np.asarray, restored.params) if as_stored else restored.params
  source = f"{folder}, step {restored.step}" + (", average" if ema else "")
  return Opened(model, params, str(folder), restored.step, source, run)


def initial_params(folder, params):
  """Parameters to begin with, from a run's newest good step or a weights folder. params: abstract
  tree with shardings.
  """
  what = f"train.init_from = {str(folder)!r}"
  if is_weights_folder(folder):
    return place(read_arrays(folder), params, what)
  try:
    return _restored(folder, params=params).params
  except ConfigError as error:
    raise ConfigError(f"{what}: {error}") from None


def check_initial(folder) -> None:
  """ConfigError where train.init_from names no run with a checkpoint and no weights folder; nothing
  large is read."""
  path = folder_path(folder)
  if is_weights_folder(path) or path.name == "checkpoints":
    return
  if not (path / "checkpoints").is_dir():
    began = (path / "run.json").is_file()
    said = f"{path} is a run without a checkpoint" if began else _no_run(path)
    raise ConfigError(f"train.init_from = {str(folder)!r}: {said}")


def _restored(folder, **options):
  """`restore_params`; damaged newer steps are logged as warnings."""
  restored = restore_params(folder, **options)
  for line in restored.lines:
    logging.getLogger("jaxlm").warning(line)
  return restored


def run_mapping(folder) -> dict:
  """A run's resolved configuration: its config.json, checked against the note of the newest
  checkpoint.

  A lost or damaged config.json, and a `model` or `data` in it that the checkpoint was not trained
  with, are replaced by the note's, which a digest protects; a warning says so. Fields that had other
  names have those of today. ConfigError: no run, or nothing of it can be read.
  """
  return with_present_fields(_run_mapping(folder_path(folder)))


def _run_mapping(path) -> dict:
  noted = newest_config(path) if (path / "checkpoints").is_dir() else None
  try:
    run = read_json(path / "config.json")
  except (FileNotFoundError, NotADirectoryError):
    if noted is None:
      raise _no_run(path) from None
    return _from_note(path, "is lost", noted)
  except ConfigError as error:
    if noted is None:
      raise
    return _from_note(
      path, str(error).removeprefix(f"{path / 'config.json'} ").partition(";")[0], noted
    )
  lost = [section for section in noted or () if section not in run]
  if lost:
    return _from_note(path, f"has no {' and no '.join(lost)}", noted)
  for section, kinds in (("model", MODELS), ("data", DATA)):
    if noted and section in noted and not _alike(kinds, run.get(section), noted[section]):
      run |= {
        section: _from_note(path, f"has another {section} than the run was trained with", noted)[
          section
        ]
      }
  return run


def _from_note(path, trouble: str, noted: dict) -> dict:
  logging.getLogger("jaxlm").warning(
    f"{path / 'config.json'} {trouble}; the copy in the newest checkpoint is used"
  )
  return noted


def _alike(kinds, here, noted) -> bool:
  """Whether both mappings mean the same; fields that were added since have their defaults in both."""
  if here == noted:
    return True
  try:
    return kinds.build(here) == kinds.build(noted)
  except (ConfigError, TypeError, ValueError, AttributeError):
    return False


def _is_model(path) -> bool:
  """Whether a path is a run folder or a weights folder."""
  try:
    return (path / "model.json").is_file() or (
      (path / "config.json").is_file() and (path / "checkpoints").is_dir()
    )
  except Exception:  # an object store raises errors of its own
    return False


def _beside(path) -> str:
  """'; did you mean ...?' if a run or weights folder beside `path` has nearly its name, else ''."""
  try:
    beside = {
      other.name
      for other in path.parent.iterdir()
      if any((other / file).is_file() for file in ("config.json", "model.json"))
    }
  except OSError:  # no such folder, or one that may not be read
    return ""
  close = difflib.get_close_matches(path.name, sorted(beside), n=1, cutoff=0.5)
  return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""


def _no_run(path) -> ConfigError:
  if not path.exists():
    hint = _beside(path) or "; `jaxlm runs FOLDER` lists the runs below a folder"
    return ConfigError(f"{path} is not a run folder: it does not exist{hint}")
  inside = next((above for above in (path.parent, path.parent.parent) if _is_model(above)), None)
  if inside is not None and not _is_model(path):
    return ConfigError(f"{path} is a part of the folder {inside}; name that one")
  if not path.is_dir():
    return ConfigError(f"{path} is neither a run folder nor a weights folder: it is a file")
  if (path / "checkpoints").is_dir():
    return ConfigError(
      f"{path} has lost its config.json, and no checkpoint of it can be read; put back a copy of it"
    )
  below = sorted(str(child) for child in path.iterdir() if _is_model(child))
  if below:
    return ConfigError(
      f"{path} is no run folder, it holds some: {', '.join(below[:5])}{', ..' * (len(below) > 5)}; name one of them"
    )
  others = [*path.glob("*.safetensors"), *path.glob("*.bin"), *path.glob("*.pt")]
  return ConfigError(
    f"{path} is neither a run folder (it holds no config.json) nor a weights folder (no model.json)"
    + (
      f"; a Hugging Face folder is converted first: jaxlm convert --from hf {path} --to OUT"
      if others
      else ""
    )
  )
