"""The run folder's growing files in an object store.

An object store cannot append or rename; writing an object replaces it whole. So what grows
(metrics, events, traces) is kept on the local disk and uploaded: before every checkpoint, so that a
checkpoint's metrics are always there, otherwise at most once a minute, and at the end.
"""

import pathlib
import tempfile
import time

from jaxlm.checkpoint.locations import folder_path, is_remote

UPLOAD_EVERY_S = 60


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
      if path.is_file() and self.sizes.get(path) != (
        stat := (path.stat().st_size, path.stat().st_mtime_ns)
      ):
        target = self.folder / path.relative_to(self.local).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        self.sizes[path] = stat
    self.last = time.monotonic()

  def close(self) -> None:
    self.upload()
    if self.temporary:
      self.temporary.cleanup()
