"""The frozen models of a run: which they are, found out before anything is read, and opened.

A run records the step and the checksums of each with its own checkpoints. It resumes with the same
ones, or not at all.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from jaxlm.checkpoint.locations import folder_path
from jaxlm.checkpoint.model_json import read_model
from jaxlm.checkpoint.opening import open_model, run_mapping
from jaxlm.checkpoint.reading import newest_note, note_of
from jaxlm.checkpoint.weights_folder import is_weights_folder, read_document
from jaxlm.config import ConfigError
from jaxlm.json_text import dumps
from jaxlm.objectives.frozen import TrainedModel
from jaxlm.training.config import RunConfig

#: {name: {"folder": ..., "step": ..., "checksum": ...}}
Record = dict[str, dict[str, Any]]


def frozen_configs(cfg: RunConfig) -> dict[str, Any]:
  """{name: model config} of the objective's frozen models. No parameters are read.

  ConfigError: no such run, or a model that cannot serve.
  """
  return {name: _config_of(name, trained, cfg) for name, trained in cfg.objective.frozen.items()}


def frozen_record(cfg: RunConfig, before: Record) -> Record:
  """Step and checksum of each frozen model. before: what this run recorded, {} of a new one.

  ConfigError where a model is not there, cannot serve, or is not the one that the run began with.
  """
  frozen_configs(cfg)
  return {
    name: _record_of(name, trained, before.get(name))
    for name, trained in cfg.objective.frozen.items()
  }


def recorded_in(folder) -> Record:
  """What the newest readable checkpoint of a run says about its frozen models."""
  note = newest_note(folder) if (folder / "checkpoints").is_dir() else None
  return {} if note is None else note.get("frozen", {})


def of_frozen(recorded: Record) -> dict[str, str]:
  """Facts that all processes of a run must have alike."""
  return {
    f"the {key} of objective.{name}": str(one[key])
    for name, one in recorded.items()
    for key in ("folder", "step", "checksum")
  }


def open_frozen(cfg: RunConfig, mesh, recorded: Record) -> tuple[dict[str, Any], dict[str, Any]]:
  """({name: model config}, {name: parameters laid out over the mesh by the model's rules})."""
  configs, params = frozen_configs(cfg), {}
  for name, trained in cfg.objective.frozen.items():
    opened = open_model(trained.folder, step=recorded[name]["step"], ema=trained.ema, mesh=mesh)
    _check_text(name, opened, cfg)
    params[name] = opened.params
  return configs, params


def _config_of(name: str, trained: TrainedModel, cfg: RunConfig):
  path = folder_path(trained.folder)
  try:
    if is_weights_folder(path):
      model = read_model(read_document(path)["model"], str(path / "model.json"))
    else:
      model = read_model(run_mapping(path).get("model"), str(path / "config.json"))
  except ConfigError as error:
    raise ConfigError(f"objective.{name} = {trained.folder!r}: {error}") from None
  cfg.objective.check_frozen(name, model, cfg)
  return model


def _record_of(name: str, trained: TrainedModel, before: Mapping | None) -> dict[str, Any]:
  where, path = f"objective.{name} = {trained.folder!r}", folder_path(trained.folder)
  if is_weights_folder(path):
    if trained.step is not None or trained.ema:
      raise ConfigError(f"{where} is a weights folder: it has no steps and no average")
    step, sums = None, read_document(path).get("checksums", {})
  else:
    wanted = before["step"] if before is not None else trained.step
    try:
      step, note = note_of(path, wanted)
    except ConfigError as error:
      began = ", with which this run began" if before is not None else ""
      raise ConfigError(f"{where}{began}: {error}") from None
    at = "ema/" if trained.ema else "params/"
    sums = {array: value for array, value in note["checksums"].items() if array.startswith(at)}
  checksum = hashlib.sha256(dumps(sums, sort_keys=True).encode()).hexdigest()[:16]
  if before is not None and before["checksum"] != checksum:
    raise ConfigError(
      f"{where} holds other parameters than those that this run began with; put those back, or "
      f"begin a new run in another --workdir"
    )
  return {"folder": str(path), "step": step, "checksum": checksum}


def _check_text(name: str, opened, cfg: RunConfig) -> None:
  """ConfigError where the same ids stand for other pieces of text."""
  if opened.data is None or not opened.data.has_text or not cfg.data.has_text:
    return
  theirs, ours = opened.tokenizer.fingerprint, cfg.data.load_tokenizer().fingerprint
  if theirs != ours:
    raise ConfigError(
      f"objective.{name} = {opened.folder!r} reads text with tokenizer {theirs}, and data.tokenizer "
      f"is {ours}: their tokens are not the same; name a run of the same tokenizer"
    )
