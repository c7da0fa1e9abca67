"""Compiled programs are kept on disk, so that a restart does not compile them again.

The folder is <data folder>/xla, or `xla` beside a run that is in an object store, where all hosts
find it. JAXLM_COMPILATION_CACHE names another folder, or is `off`. Settings of JAX itself
(JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE) have precedence. A folder that cannot be
written to costs the time to compile, and a warning.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import threading
import uuid

import jax
from etils import epath

from jaxlm.checkpoint.locations import folder_path, is_remote
from jaxlm.data.folders import data_dir

VARIABLE = "JAXLM_COMPILATION_CACHE"
#: Seconds: programs that compile faster are not kept in an object store, where a file costs as much.
MIN_COMPILE_S = 0.2
#: Bytes of a folder on a disk; beyond it the entries that were written first are removed.
MAX_BYTES = 4 << 30
ASKED, HITS = (
  "/jax/compilation_cache/compile_requests_use_cache",
  "/jax/compilation_cache/cache_hits",
)
COMPILE = "/jax/core/compile/backend_compile_duration"


class CompilationCache:
  """folder: where it is, None where there is none. warning: why there is none, if it was wanted."""

  def __init__(self, folder: str | None, warning: str | None = None):
    self.folder, self.warning = folder, warning
    self._told = _counts()

  def line(self) -> str | None:
    """What was compiled and what was read since the last call; None where nothing was."""
    before, self._told = self._told, _counts()
    asked, hits, seconds = (now - then for now, then in zip(self._told, before))
    if not asked:
      return None
    return (
      f"programs in {seconds:.1f} s: {hits:.0f} that an earlier run compiled read from {self.folder}, "
      f"{asked - hits:.0f} compiled and kept there"
    )


def keep_programs(workdir) -> CompilationCache:
  """Switches the cache on for this process. Call it before anything is compiled."""
  _listen()
  if not jax.config.jax_enable_compilation_cache:
    return CompilationCache(None)
  if jax.config.jax_compilation_cache_dir and not _ours():
    return CompilationCache(jax.config.jax_compilation_cache_dir)
  wanted = os.environ.get(VARIABLE, "")
  if wanted == "off":
    return CompilationCache(None)
  try:
    folder = folder_path(wanted) if wanted else _default(workdir)
    folder = folder / _machine() if not is_remote(folder) else folder
    _check_writable(folder)
  except Exception as error:  # an object store raises errors of its own
    jax.config.update("jax_compilation_cache_dir", None)
    said = (str(error) or type(error).__name__).splitlines()[0]
    return CompilationCache(
      None,
      f"warning: compiled programs are not kept, because their folder cannot be written to ({said}); "
      f"{VARIABLE} names another folder, or is 'off'",
    )
  if not is_remote(folder):
    _prune(pathlib.Path(folder))
  _use(str(folder))
  return CompilationCache(str(folder))


def _use(folder: str) -> None:
  global _chosen
  if jax.config.jax_compilation_cache_dir != folder:
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", folder)
  least = MIN_COMPILE_S if is_remote(folder) else 0.0
  jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
  _chosen = folder


_chosen: str | None = None


def _ours() -> bool:
  return jax.config.jax_compilation_cache_dir == _chosen


def _default(workdir):
  """Beside a run in an object store; otherwise in the data folder."""
  run = folder_path(workdir)
  if is_remote(run) and run.parent != run and str(run.parent).count("/") > 1:
    return run.parent / "xla"
  return epath.Path(data_dir() / "xla")


def _machine() -> str:
  """Programs for a CPU use its instructions, and may not be run by another one: `cpu-4f1c09aa`."""
  if jax.default_backend() != "cpu":
    return jax.default_backend()
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text()
    flags = next(line for line in text.splitlines() if line.startswith(("flags", "Features")))
  except (OSError, StopIteration):
    flags = platform.processor()
  return f"cpu-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def _check_writable(folder) -> None:
  """Raises what the system says where no file can be made in the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  if is_remote(folder) and jax.process_index() != 0:
    return  # only the first process writes
  probe = folder / f".probe-{uuid.uuid4().hex}"
  probe.write_bytes(b"1")
  probe.unlink()


def _prune(folder: pathlib.Path) -> None:
  """Removes the oldest entries of a folder that is larger than MAX_BYTES, to three quarters of it."""
  with contextlib.suppress(OSError):
    entries = [(entry.stat(), entry.path) for entry in os.scandir(folder) if entry.is_file()]
    size = sum(stat.st_size for stat, _ in entries)
    if size <= MAX_BYTES:
      return
    for stat, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
      if size <= MAX_BYTES * 3 // 4:
        return
      os.unlink(path)
      size -= stat.st_size


# What JAX reports of its cache, counted for the whole process.
_lock, _listening = threading.Lock(), False
_found = {ASKED: 0.0, HITS: 0.0, COMPILE: 0.0}


def _counts() -> tuple[float, float, float]:
  return _found[ASKED], _found[HITS], _found[COMPILE]


def _listen() -> None:
  global _listening
  if _listening:
    return
  _listening = True

  def add(name, value):
    if name in _found:
      with _lock:
        _found[name] += value

  jax.monitoring.register_event_listener(lambda name, **_: add(name, 1))
  jax.monitoring.register_event_duration_secs_listener(lambda name, s, **_: add(name, s))
