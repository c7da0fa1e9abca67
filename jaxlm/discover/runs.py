"""The runs below a folder: where each stands, its last numbers, and in what their configurations differ."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxlm.checkpoint.json_files import read_json
from jaxlm.checkpoint.locations import folder_path
from jaxlm.config import ConfigError
from jaxlm.training.config import differences
from jaxlm.training.metrics import read
from jaxlm.training.run_lock import is_held

DEPTH = 4  # of folders below the one that is searched


@dataclasses.dataclass(frozen=True)
class Run:
  """What there is to say about one run. state: finished, stopped, failed, running, interrupted or
  damaged. changed: seconds since the epoch. numbers: the last value of each.
  """

  folder: str
  state: str
  step: int = 0
  steps: int | None = None
  numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  changed: float = 0.0
  why: str = ""


def find(root: str) -> Iterator[pathlib.Path]:
  """Run folders below a folder of a disk, itself included, in the order of their names."""
  top = pathlib.Path(root)
  for folder, inside, files in os.walk(top, followlinks=True):
    at = pathlib.Path(folder)
    inside.sort()
    if "config.json" in files and ("run.json" in files or "checkpoints" in inside):
      inside.clear()
      yield at
    elif len(at.relative_to(top).parts) >= DEPTH:
      inside.clear()


def look(folder) -> Run:
  """One run folder."""
  path = folder_path(folder)
  name = str(folder)
  try:
    config = read_json(path / "config.json")
    records = read(path)
    result = read_json(path / "result.json") if (path / "result.json").exists() else {}
  except (ConfigError, OSError) as error:
    return Run(name, "damaged", why=str(error))
  numbers: dict[str, float] = {}
  for record in records:
    numbers |= {key: value for key, value in record.items() if key != "step"}
  train = config.get("train")
  return Run(
    name,
    _state(path, result),
    max((record["step"] for record in records), default=int(result.get("step") or 0)),
    train.get("steps") if isinstance(train, Mapping) else None,
    numbers,
    config,
    _changed(path),
    str(result.get("failed") or result.get("stopped") or ""),
  )


def _state(path, result: Mapping) -> str:
  if not result:  # removed when a run is begun or continued
    return "running" if is_held(path) else "interrupted"
  if result.get("finished"):
    return "finished"
  return "failed" if result.get("failed") else "stopped"


def _changed(path) -> float:
  times = [(path / name) for name in ("metrics.jsonl", "result.json", "run.json", "config.json")]
  return max((float(p.stat().mtime) for p in times if p.exists()), default=0.0)


def apart(runs: Sequence[Run]) -> list[str]:
  """The dotted keys of the configurations in which any two of the runs differ."""
  configs = [run.config for run in runs if run.config]
  found: dict[str, None] = {}
  for config in configs[1:]:
    found |= dict.fromkeys(key for key, _, _ in differences(configs[0], config))
  return list(found)


def value_at(config: Mapping, key: str):
  """The value under a dotted key; the kind, of a part; None where there is none."""
  value: Any = config
  for name in key.split("."):
    value = value.get(name) if isinstance(value, Mapping) else None
  return value.get("kind", "..") if isinstance(value, Mapping) else value


def age(seconds: float, now: float | None = None) -> str:
  """'3 min', '5 h', '2 d': since a time in seconds since the epoch."""
  past = max((time.time() if now is None else now) - seconds, 0)
  for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
    if past >= size:
      return f"{past / size:.0f} {unit}"
  return f"{past:.0f} s"
