"""A folder in a shared cache that is made once, by whichever process comes first, and is never seen
half made.

The maker holds a lock (`flock`, released by the kernel when the process dies), writes into a folder
of a name that nobody else uses, and renames it. Processes that want the same folder wait. What an
interrupted maker has left is removed by the next one. A folder whose files do not have the recorded
sizes is made again.
"""

import contextlib
import json
import os
import pathlib
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator

from jaxlm import json_text

try:
  import fcntl
except (
  ImportError
):  # Windows: no lock; names stay unique, and the last of two makers is thrown away
  fcntl = None

SIZES = "sizes.json"


def made_once(folder: pathlib.Path, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """`folder`, made by `make(empty folder)` if it is not there whole. Its parent is the cache."""
  if whole(folder):
    return folder
  folder.parent.mkdir(parents=True, exist_ok=True)
  with locked(_lock_of(folder)):
    remove_leftovers(folder.parent)
    if whole(folder):  # another process was first
      return folder
    part = folder.parent / f"{folder.name}.part-{uuid.uuid4().hex}"
    part.mkdir()
    try:
      make(part)
      sizes = {file.name: file.stat().st_size for file in part.iterdir()}
      (part / SIZES).write_text(json_text.dumps(sizes))
      old = folder.parent / f"{folder.name}.part-{uuid.uuid4().hex}"
      if (
        folder.exists()
      ):  # damaged: other processes may have it mapped, so it is moved and not written over
        folder.rename(old)
      part.rename(folder)
      shutil.rmtree(old, ignore_errors=True)
    except OSError:
      if not whole(folder):
        raise
    finally:
      shutil.rmtree(part, ignore_errors=True)
  return folder


def whole(folder: pathlib.Path) -> bool:
  """Whether every file of a made folder has the size that it was made with.

  No file is read but the list of sizes.
  """
  try:
    sizes = json.loads((folder / SIZES).read_text())
    return bool(sizes) and all(
      (folder / name).stat().st_size == size for name, size in sizes.items()
    )
  except (OSError, ValueError, AttributeError):
    return False


def remove_leftovers(cache: pathlib.Path) -> None:
  """Removes parts whose maker is gone: nobody holds the lock of the folder that they were to
  become, or we do.
  """
  for part in cache.glob("*.part*"):
    name = part.name.partition(".part")[0]
    with contextlib.suppress(OSError), locked(cache / f"{name}.lock", wait=False) as ours:
      if ours:
        shutil.rmtree(part, ignore_errors=True)


_held: dict[str, int] = {}  # lock file -> the thread of this process that holds it


def _lock_of(folder: pathlib.Path) -> pathlib.Path:
  return folder.parent / f"{folder.name}.lock"


@contextlib.contextmanager
def locked(path: pathlib.Path, *, wait: bool = True) -> Iterator[bool]:
  """Holds a lock file; yields whether it is held. On a file system without locks, who would wait
  goes on without one, and who
  would not is told that it is not held: nothing is removed there."""
  owner = _held.get(str(path))
  if owner == threading.get_ident() or (owner is not None and not wait):
    yield owner == threading.get_ident()
    return
  try:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  except PermissionError:  # another user's lock file
    handle = os.open(path, os.O_RDONLY)
  try:
    real = held = False
    try:
      if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        real = held = True
      else:
        held = wait
    except BlockingIOError:
      pass
    except OSError:
      held = wait
    if real:
      _held[str(path)] = threading.get_ident()
    try:
      yield held
    finally:
      if real:
        _held.pop(str(path), None)
  finally:
    os.close(handle)
