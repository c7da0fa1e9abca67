"""Places of runs and weights, on a disk or in an object store (gs://, s3://), and whole-file JSON there."""

import contextlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from jaxlm import json_text
from jaxlm.config import ConfigError
from jaxlm.paths import expand


def folder_path(workdir) -> epath.Path:
  """Absolute, as Orbax wants it. ConfigError for an empty name, which a shell makes of a variable that is not set."""
  if not str(workdir):
    raise ConfigError("the folder's name is empty; write '.' for the folder where you are")
  if "\0" in str(workdir):
    raise ConfigError(f"the folder's name {str(workdir)!r} holds a zero byte, which no file system has")
  return epath.Path(workdir) if is_remote(workdir) else epath.Path(pathlib.Path(expand(workdir)).absolute())


def check_name(folder) -> None:
  """ConfigError for a path that the checkpoint library would read as a pattern: it would write there and never find it."""
  found = sorted(set(str(folder)) & set("*?["))
  if found:
    raise ConfigError(f"{folder} has {' and '.join(map(repr, found))} in its name, which the checkpoint library takes for a "
                      f"pattern, so that no checkpoint there could be read again; choose another --workdir (a symbolic link "
                      f"without {'it' if len(found) == 1 else 'them'} will do)")


def read_json(path: epath.Path, kind: type = dict):
  """The value of a JSON file. ConfigError where it is damaged: empty, no JSON, or not a `kind`."""
  try:
    value = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
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


def exists_as_file(path) -> bool:
  """Whether there is a file, also for names that no disk could hold."""
  try:
    return epath.Path(path).is_file()
  except (OSError, ValueError):
    return False


def copy_file(source, target):
  """Copies a file between a disk and an object store, or within one. Returns the target."""
  source, target = epath.Path(source), epath.Path(target)
  with source.open("rb") as read, target.open("wb") as write:
    shutil.copyfileobj(read, write, 1 << 24)
  return target


class LocalCopies:
  """Files on this machine's disk. Those of an object store are copied, and the copies live as long as this object."""

  def __init__(self):
    self._folder = None

  def of(self, path) -> pathlib.Path:
    if not is_remote(path):
      return pathlib.Path(path)
    self._folder = self._folder or tempfile.TemporaryDirectory(prefix="jaxlm-")
    copy = pathlib.Path(self._folder.name) / epath.Path(path).name
    copy_file(path, copy)
    return copy


@contextlib.contextmanager
def written_whole(folder) -> Iterator[pathlib.Path]:
  """A new local folder whose files are in `folder` once the block ends, and none of them if it fails."""
  target = folder_path(folder)
  beside = None if is_remote(target) else pathlib.Path(target).parent
  if beside is not None:
    pathlib.Path(target).mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=".partial-", dir=beside) as temporary:
    local = pathlib.Path(temporary)
    yield local
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(local.iterdir()):
      if beside is None:
        copy_file(file, target / file.name)
      else:
        file.replace(pathlib.Path(target) / file.name)
