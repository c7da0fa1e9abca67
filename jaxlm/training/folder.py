"""The run folder's files, on a disk or in an object store (gs://, s3://).

An object store cannot append or rename; writing an object replaces it whole. So what grows (metrics, events, traces) is
kept on the local disk and uploaded: before every checkpoint, so that a checkpoint's metrics are always there, otherwise
at most once a minute, and at the end.
"""

import json
import pathlib
import tempfile
import time

from etils import epath

from jaxlm import json_text
from jaxlm.config import ConfigError
from jaxlm.paths import expand

UPLOAD_EVERY_S = 60


def folder_path(workdir) -> epath.Path:
  """Absolute, as Orbax wants it."""
  return epath.Path(workdir) if is_remote(workdir) else epath.Path(pathlib.Path(expand(workdir)).absolute())


def read_json(path: epath.Path, kind: type = dict):
  """The value of a JSON file. ConfigError where it is damaged: empty, no JSON, or not a `kind`."""
  try:
    value = json.loads(path.read_text())
  except (UnicodeDecodeError, ValueError) as error:
    what = f"no JSON ({error})" if path.read_bytes().strip() else "empty"
    raise ConfigError(f"{path} is damaged: it is {what}; put back a copy of it") from None
  if not isinstance(value, kind):
    raise ConfigError(f"{path} is damaged: it holds a {type(value).__name__}, wanted a {kind.__name__}; put back a copy of it")
  return value


def is_remote(workdir) -> bool:
  return "://" in str(workdir)


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


class Mirror:
  """A local folder whose files end up in `folder`; for a folder on a disk it is that folder."""

  def __init__(self, folder):
    self.folder = folder_path(folder)
    self.remote = is_remote(folder)
    self.temporary = tempfile.TemporaryDirectory(prefix="jaxlm-") if self.remote else None
    self.local = pathlib.Path(self.temporary.name if self.remote else self.folder)
    self.last, self.sizes = time.monotonic(), {}

  def due(self) -> bool:
    return self.remote and time.monotonic() - self.last > UPLOAD_EVERY_S

  def upload(self) -> None:
    """Files that have changed since the last time."""
    if not self.remote:
      return
    for path in sorted(self.local.rglob("*")):
      if path.is_file() and self.sizes.get(path) != (stat := (path.stat().st_size, path.stat().st_mtime_ns)):
        target = self.folder / path.relative_to(self.local).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        self.sizes[path] = stat
    self.last = time.monotonic()

  def close(self) -> None:
    self.upload()
    if self.temporary:
      self.temporary.cleanup()
