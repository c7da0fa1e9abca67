"""Who may write to a run folder: one process, named in its `lock.json`.

On a local disk the process holds a kernel lock (`flock`) on that file, which ends with the process,
however it ends. In an object store, and on network file systems, whose kernel locks may be of one
host only, the file is a lease: its owner renews it, and who finds one that is not renewed for
`lease_s` seconds takes it over. No two clocks are compared. An owner that finds another's name in
the file ends without writing anything more. Readers (eval, generate, convert) need no lock.
"""

import contextlib
import json
import os
import pathlib
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator

from jaxlm import json_text
from jaxlm.checkpoint.json_files import write_text
from jaxlm.checkpoint.locations import folder_path, is_remote
from jaxlm.config import ConfigError
from jaxlm.parallel.start import seconds

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

LOCK = "lock.json"
#: Seconds; environment variable -> default. A lease that is not renewed for so long is dead.
LEASE = ("JAXLM_LEASE_S", 60)
#: What mountinfo calls file systems whose `flock` another host may not see.
NETWORK = {
  "nfs",
  "nfs4",
  "cifs",
  "smb3",
  "smbfs",
  "9p",
  "virtiofs",
  "vboxsf",
  "ceph",
  "lustre",
  "gpfs",
  "beegfs",
  "glusterfs",
  "afs",
  "orangefs",
  "pvfs2",
  "fuse",
}


class RunLocked(ConfigError):
  """Another process writes to this run folder; the message says which, since when, and what to do."""


class LockLost(RuntimeError):
  """Another process has taken this run over."""


@contextlib.contextmanager
def hold(workdir, *, take_over: bool = False, say=lambda line: None) -> Iterator["_Lock"]:
  """The lock of a run folder, which must exist. `.check()` raises LockLost when another process has
  taken it over.

  take_over: also where the owner cannot be asked; an owner that runs on this machine is never
  replaced.
  say: gets a sentence when a dead owner's lease is taken over. Raises RunLocked.
  """
  folder = folder_path(workdir)
  lock = _KernelLock(folder) if not is_remote(folder) and kernel_locks(folder) else _Lease(folder)
  lock.acquire(take_over, say)
  try:
    yield lock
  finally:
    lock.release()


def is_held(workdir) -> bool:
  """Whether a process is known to write to a run folder: one that runs on this machine, or one
  elsewhere that has renewed its lease lately. Locks nothing.
  """
  path = folder_path(workdir) / LOCK
  try:
    owner = json.loads(path.read_text())
    written = float(path.stat().mtime)
  except (OSError, ValueError):
    return False
  if not isinstance(owner, dict) or not owner.get("token"):
    return False
  return _alive(owner) or (not _is_here(owner) and time.time() - written < 2 * seconds(*LEASE))


def kernel_locks(folder) -> bool:
  """Whether `flock` in this folder is seen by every process that can write there."""
  if fcntl is None or _file_system(folder) in NETWORK:
    return False
  try:
    probe = tempfile.TemporaryFile(dir=folder)
  except OSError:  # nothing can be written here: the lock file itself will say it better
    return True
  with probe:
    try:
      fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      return False
  return True


def _file_system(folder) -> str | None:
  """Type of the mount that holds a folder, as the kernel has it; 'fuse' for all of FUSE but disks;
  None: not known.
  """
  try:
    mounts = [
      line.split() for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    ]
  except OSError:
    return None
  at, found = pathlib.Path(folder).resolve(), {}
  for fields in mounts:
    point = pathlib.Path(fields[4].encode().decode("unicode_escape"))
    if at.is_relative_to(point):
      found[len(point.parts)] = fields[
        fields.index("-") + 1
      ]  # of two mounts at one point the later is seen
  kind = found[max(found)] if found else None
  return "fuse" if kind and kind.startswith("fuse.") else kind


class _Lock:
  """What both kinds share: who we are, what is said."""

  def __init__(self, folder):
    self.folder, self.path = folder, folder / LOCK
    self.token, self.lost = uuid.uuid4().hex, False

  def owner(self) -> dict:
    return {
      "host": socket.gethostname(),
      "pid": os.getpid(),
      "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
      "token": self.token,
      "machine": _machine(),
      "born": _born(os.getpid()),
    }

  def read(self) -> dict | None:
    """The owner in the file; empty where it names nobody, None where there is no file."""
    try:
      found = json.loads(self.path.read_text())
    except FileNotFoundError:
      return None
    except ValueError:  # made, and not yet written
      return {}
    return found if isinstance(found, dict) else {}

  def refused(self, owner: dict) -> RunLocked:
    alive = _alive(owner)
    remedy = (
      f"end it first (kill {owner['pid']})"
      if alive
      else "if that process is dead, give the same command with --take_over"
    )
    return RunLocked(
      f"{self.folder} is in use by {_named(owner)}; wait, choose another --workdir, or {remedy}"
    )

  def taken_over(self) -> LockLost:
    self.lost = True
    owner = self.read()
    what = (
      f"{self.folder} has been taken over by {_named(owner)}"
      if owner
      else f"{self.path} has been removed"
    )
    return LockLost(f"{what}; this process may not write there any more, and ends without saving")


_held: set[int] = set()


def _forget() -> None:
  """Called in a forked child, which may outlive its parent and must not hold the parent's lock."""
  for file in _held:
    os.close(file)
  _held.clear()


if hasattr(os, "register_at_fork"):
  os.register_at_fork(after_in_child=_forget)


class _KernelLock(_Lock):
  """While it is held, `file` is the open lock file."""

  def acquire(self, take_over: bool, say) -> None:
    while True:
      file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        os.close(file)
        owner = self._owner_in_time()
        if owner is None:
          continue
        if not take_over or _alive(owner):
          raise self.refused(owner) from None
        self._replace()
        say(f"took {self.folder} over from {_named(owner)}")
        return
      if self._is_ours(file):
        break
      os.close(file)  # its last owner has removed it since
    self._keep(file)

  def _owner_in_time(self) -> dict | None:
    """Who holds the lock, once they have written their name."""
    for _ in range(20):
      owner = self.read()
      if owner is None or owner:
        return owner
      time.sleep(0.05)
    return {}

  def _replace(self) -> None:
    """Puts a lock file of this process in the place of one whose owner cannot be asked."""
    path = self.path.with_name(f"{LOCK}.{self.token}")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    self._keep(file)
    os.replace(path, self.path)

  def _keep(self, file: int) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json_text.dumps(self.owner()).encode(), 0)
    self.file = file
    _held.add(file)

  def _is_ours(self, file: int) -> bool:
    try:
      there, here = os.stat(self.path), os.fstat(file)
    except FileNotFoundError:
      return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

  def check(self) -> None:
    if not self._is_ours(self.file):
      raise self.taken_over()

  def release(self) -> None:
    if self._is_ours(self.file):
      with contextlib.suppress(OSError):
        os.unlink(self.path)
    _held.discard(self.file)
    os.close(self.file)


class _Lease(_Lock):
  """A thread renews it."""

  def __init__(self, folder):
    super().__init__(folder)
    self.lease_s, self.beats, self.done, self.me = (
      seconds(*LEASE),
      0,
      threading.Event(),
      self.owner(),
    )

  def acquire(self, take_over: bool, say) -> None:
    owner = self.read()
    if owner is not None:
      gone = self._gone(owner)
      if not gone and not (take_over and not _alive(owner)):
        raise self.refused(owner)
      say(f"took {self.folder} over from {_named(owner)}" + ("; it is gone" if gone else ""))
    self._write()
    # Two may have seen the file absent: the later writer's name stays, and both can read it after a
    # while.
    time.sleep(self.lease_s / 60)
    found = self.read()
    if not found or found.get("token") != self.token:
      raise self.refused(found or {})
    self.thread = threading.Thread(target=self._renew, name="lease", daemon=True)
    self.thread.start()

  def _gone(self, owner: dict) -> bool:
    """Whether its owner is dead: not on this machine any more, or not renewing it."""
    if _is_here(owner):
      return not _alive(owner)
    end = time.monotonic() + (owner.get("lease_s") or self.lease_s)
    while time.monotonic() < end:
      time.sleep(min(1, self.lease_s / 20))
      now = self.read()
      if now != owner:
        return now is None
    return True

  def _write(self) -> None:
    self.beats += 1
    write_text(self.path, json_text.dumps(self.me | {"lease_s": self.lease_s, "beats": self.beats}))

  def _renew(self) -> None:
    while not self.done.wait(self.lease_s / 6):
      try:
        self.check()
        self._write()
      except LockLost:
        return
      except OSError:  # the store does not answer; the file is read again at the next turn
        continue

  def check(self) -> None:
    if self.lost:
      raise self.taken_over()
    owner = self.read()
    if not owner or owner.get("token") != self.token:
      raise self.taken_over()

  def release(self) -> None:
    self.done.set()
    self.thread.join()
    with contextlib.suppress(OSError, LockLost):
      self.check()
      self.path.unlink()


def _named(owner: dict) -> str:
  if not owner.get("pid"):
    return "another process"
  return f"process {owner['pid']} on host {owner.get('host')}, started {owner.get('started')}"


def _machine() -> str | None:
  """Where process ids mean the same: this boot of this kernel, this container. None: not known."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return None


def _born(pid) -> str | None:
  """When a process began, in the kernel's ticks: tells it from a later one of the same id.

  None where it has ended.
  """
  try:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
  except (OSError, IndexError):
    return None


def _is_here(owner: dict) -> bool:
  return owner.get("machine") is not None and owner["machine"] == _machine()


def _alive(owner: dict) -> bool:
  """Whether the owner is seen to run on this machine."""
  return _is_here(owner) and owner.get("born") is not None and _born(owner["pid"]) == owner["born"]
