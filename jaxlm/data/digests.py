"""SHA-256 of files, each computed once: remembered in the process, and for large files in the data
folder.

A file is known by its real path, size, inode, and the times of its last change and of the last
change of its entry (nanoseconds; the second one cannot be put back). A second change within one
tick of the clock would not show, so a file that has just changed is hashed a tick later. Where
times are whole seconds, one that changed within the last two is hashed again each time.
"""

import contextlib
import glob
import hashlib
import json
import os
import time
import uuid

from jaxlm import json_text
from jaxlm.data.errors import DataError
from jaxlm.data.files import content_digest, is_url
from jaxlm.data.folders import data_dir

LARGE = 1 << 20  # bytes; smaller files are hashed faster than looked up
TICK_S = 0.02
RECENT_S = 2.0
LEFT_S = 60.0
_known: dict[str, tuple[list, str]] = {}
_read: set[str] = set()


def file_digest(path: str | os.PathLike) -> str:
  """Hexadecimal SHA-256 of a file's bytes; of an address, what its store says of them."""
  if is_url(path):
    return content_digest(str(path))
  real = os.path.realpath(path)
  stat = os.stat(real)
  stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
  if stat.st_size >= LARGE:
    _load()
  if real in _known and _known[real][0] == stamp:
    return _known[real][1]
  if 0 <= (age := time.time() - stat.st_ctime_ns / 1e9) < TICK_S:
    time.sleep(TICK_S - age)
  with open(real, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if stat.st_ctime_ns % 1_000_000_000 or abs(time.time() - stat.st_ctime) > RECENT_S:
    _known[real] = (stamp, digest)
    if stat.st_size >= LARGE:
      _save()
  return digest


def _file() -> str | None:
  """None where no data folder is known: then nothing is kept beyond the process."""
  try:
    return str(data_dir() / "digests.json")
  except DataError:
    return None


def _load() -> None:
  """What other processes have found, once per data folder.

  A damaged or absent file is as an empty one.
  """
  file = _file()
  if file is None or file in _read:
    return
  _read.add(file)
  with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
    with open(file, encoding="utf-8") as kept:
      for path, (stamp, digest) in json.load(kept).items():
        _known.setdefault(path, (list(stamp), str(digest)))


def _save() -> None:
  """Adds to what other processes have written, atomically.

  A folder that cannot be written costs a hash.
  """
  file = _file()
  if file is None:
    return
  _read.discard(file)
  _load()
  with contextlib.suppress(OSError):
    os.makedirs(os.path.dirname(file), exist_ok=True)
    for left in glob.glob(f"{glob.escape(file)}.*"):  # of a process that was killed while it wrote
      if time.time() - os.path.getmtime(left) > LEFT_S:
        os.unlink(left)
    large = {path: entry for path, entry in _known.items() if entry[0][0] >= LARGE}
    part = f"{file}.{uuid.uuid4().hex}"
    with open(part, "w", encoding="utf-8") as out:
      out.write(json_text.dumps(large))
    os.replace(part, file)
