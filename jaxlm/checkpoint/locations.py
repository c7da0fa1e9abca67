"""Places of runs and weights, on a disk or in an object store (gs://, s3://)."""

import pathlib

from etils import epath

from jaxlm.config import ConfigError
from jaxlm.paths import expand


def folder_path(workdir) -> epath.Path:
  """Absolute, as Orbax wants it.

  ConfigError for an empty name, which a shell makes of a variable that is not set.
  """
  if not str(workdir):
    raise ConfigError("the folder's name is empty; write '.' for the folder where you are")
  if "\0" in str(workdir):
    raise ConfigError(
      f"the folder's name {str(workdir)!r} holds a zero byte, which no file system has"
    )
  return (
    epath.Path(workdir)
    if is_remote(workdir)
    else epath.Path(pathlib.Path(expand(workdir)).absolute())
  )


def check_name(folder) -> None:
  """ConfigError for a path that the checkpoint library would read as a pattern: it would write
  there and never find it.
  """
  found = sorted(set(str(folder)) & set("*?["))
  if found:
    raise ConfigError(
      f"{folder} has {' and '.join(map(repr, found))} in its name, which the checkpoint library takes for a "
      f"pattern, so that no checkpoint there could be read again; choose another --workdir (a symbolic link "
      f"without {'it' if len(found) == 1 else 'them'} will do)"
    )


def is_remote(workdir) -> bool:
  return "://" in str(workdir)


def exists_as_file(path) -> bool:
  """Whether there is a file, also for names that no disk could hold."""
  try:
    return epath.Path(path).is_file()
  except (OSError, ValueError):
    return False
