"""Files between this machine's disk and an object store: copies to read, and folders that are
written whole or not at all.
"""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from jaxlm.checkpoint.locations import folder_path, is_remote


def copy_file(source, target):
  """Copies a file between a disk and an object store, or within one. Returns the target."""
  source, target = epath.Path(source), epath.Path(target)
  with source.open("rb") as read, target.open("wb") as write:
    shutil.copyfileobj(read, write, 1 << 24)
  return target


class LocalCopies:
  """Files on this machine's disk.

  Those of an object store are copied, and the copies live as long as this object.
  """

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
  """A new local folder whose files are in `folder` once the block ends, and none of them if it
  fails.
  """
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
