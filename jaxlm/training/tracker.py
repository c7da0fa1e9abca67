"""A run's numbers in Weights & Biases or Trackio as well, whose interfaces agree in what is used here.

The project is the environment variable WANDB_PROJECT or TRACKIO_PROJECT, else `jaxlm`. A run that is
resumed goes on in the same place: its id is in tracker.json.
"""

import importlib
import importlib.util
import math
import os
import uuid
from collections.abc import Mapping
from typing import Any

from jaxlm.checkpoint.json_files import read_json, write_json
from jaxlm.checkpoint.locations import folder_path, is_remote
from jaxlm.config import ConfigError

FILE = "tracker.json"


def check(kind: str | None) -> None:
  """ConfigError where the package is not installed."""
  if kind is not None and importlib.util.find_spec(kind) is None:
    raise ConfigError(
      f"train.tracker = {kind!r}: the package is not installed (pip install 'jaxlm[{kind}]'); or leave it out: "
      f"TensorBoard events are written in any case"
    )


class Tracker:
  """kind: 'wandb' or 'trackio'. config: resolved, what the service shows of the run."""

  def __init__(self, kind: str, workdir, config: Mapping[str, Any]):
    folder = folder_path(workdir)
    own = _own_id(folder / FILE, kind)
    options: dict[str, Any] = {"id": own} if kind == "wandb" else {}
    if kind == "wandb" and not is_remote(folder):
      options["dir"] = str(folder)
    self.service = importlib.import_module(kind)
    self.service.init(
      project=os.environ.get(f"{kind.upper()}_PROJECT", "jaxlm"),
      name=folder.name if kind == "wandb" else f"{folder.name}-{own}",
      config=dict(config),
      resume="allow",
      **options,
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Numbers that are not finite are left out."""
    self.service.log({k: v for k, v in values.items() if math.isfinite(v)}, step=step)

  def close(self) -> None:
    self.service.finish()


def _own_id(path, kind: str) -> str:
  """The id of the run in the service, made once."""
  known = read_json(path) if path.exists() else {}
  if kind not in known:
    known = {**known, kind: uuid.uuid4().hex[:8]}
    write_json(path, known)
  return known[kind]
