"""Text and JSON files, written whole or not at all, on a disk or in an object store."""

import json

from etils import epath

from jaxlm import json_text
from jaxlm.checkpoint.locations import is_remote
from jaxlm.config import ConfigError


def read_json(path: epath.Path, kind: type = dict):
  """The value of a JSON file. ConfigError where it is damaged: empty, no JSON, or not a `kind`."""
  try:
    value = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    what = f"no JSON ({error})" if path.read_bytes().strip() else "empty"
    raise ConfigError(f"{path} is damaged: it is {what}; put back a copy of it") from None
  if not isinstance(value, kind):
    raise ConfigError(
      f"{path} is damaged: it holds a {type(value).__name__}, wanted a {kind.__name__}; put back a copy of it"
    )
  return value


def write_text(path: epath.Path, text: str) -> None:
  """Whole or not at all: a run killed here must still be resumable."""
  if is_remote(path):
    path.write_text(text)
    return
  partial = path.with_name(path.name + ".tmp")
  partial.write_text(text)
  partial.replace(path)


def write_json(path: epath.Path, value) -> None:
  write_text(path, json_text.dumps(value, indent=1) + "\n")
