"""Checkpoints on a disk of each host, between those in the run folder: Orbax's multi-tier manager.

Each process writes what its own devices hold to its own disk, which takes seconds where a bucket
takes minutes, so it can be done more often. A crash, a hang or a lost process on living hosts then
costs the steps since the last of these. Nothing is copied to another host: where one is lost, its
part is, and the run folder's newest is read. A step counts when every process has all of its files as they were written; otherwise the run folder's newest is
read. That is found out before the manager restores: it waits for all processes in the middle, and
one that fails there takes the others with it.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import sys
import threading
import time
import zlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxlm import json_text
from jaxlm.checkpoint import notes
from jaxlm.checkpoint.checksums import checksums
from jaxlm.checkpoint.errors import CheckpointError
from jaxlm.checkpoint.locations import is_remote
from jaxlm.checkpoint.reading import compared, first_line
from jaxlm.config import ConfigError
from jaxlm.parallel.agree import gather
from jaxlm.paths import expand

KEPT = 1  # steps, besides the one that is being written
SEAL_S = 600  # a write that takes longer is not waited for


class LocalSteps:
  """The steps of one run on this host's disk. `with LocalSteps(...) as local:` waits for the last
  write. folder: train.local.folder; run: the run folder, which names the steps' own.
  """

  def __init__(self, folder: str, run, mesh):
    key = hashlib.sha256(str(run).encode()).hexdigest()[:12]
    self.folder = pathlib.Path(expand(folder)) / f"jaxlm-{key}" / f"process-{jax.process_index()}"
    self.mesh, self.manager = mesh, None

  def __enter__(self) -> "LocalSteps":
    trouble = None
    try:
      self._open()
    except Exception as error:  # a disk's, Orbax's
      trouble = f"process {jax.process_index()}: {first_line(error)}"
    found = [text for text in gather(trouble) if text]
    if found:
      raise ConfigError(
        f"train.local.folder cannot be used ({found[0]}); give a folder on a disk of every host, or leave it out"
      )
    return self

  def _open(self) -> None:
    from absl import flags
    from orbax.checkpoint._src.multihost import multihost  # what the manager asks for at each save
    from orbax.checkpoint.experimental.emergency import replicator_checkpoint_manager as orbax

    if not flags.FLAGS.is_parsed():  # it reads one when it restores
      flags.FLAGS(sys.argv[:1])
    multihost.initialize_runtime_to_distributed_ids()
    multihost.initialize_distributed_to_device_ids()
    (self.folder / "notes").mkdir(parents=True, exist_ok=True)
    self.manager = orbax.ReplicatorCheckpointManager(
      epath.Path(self.folder / "steps"),
      orbax.ReplicatorCheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(n=KEPT)
      ),
      global_mesh=self.mesh,
    )

  def __exit__(self, *_) -> None:
    if self.manager is not None:
      self.manager.close()

  def newest(self) -> int | None:
    """The newest step that every process has whole."""
    here = [int(step) for step in self.manager.all_steps() if self._whole(int(step))]
    everywhere = set.intersection(*map(set, gather(sorted(here))))
    return max(everywhere, default=None)

  def save(self, step: int, state, iterator, note: dict[str, Any]) -> None:
    """Copies the state to the host, then writes in the background."""
    if step in self.manager.all_steps():
      return
    about = {
      "format": notes.FORMAT,
      "data": iterator.get_state(),
      "checksums": checksums(state),
      "processes": jax.process_count(),
    }
    _write(self.folder / "notes" / f"{step}.json", notes.sealed(about | note))
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state))
    try:
      self.manager.save(step, args=args, force=True)
    except (OSError, ValueError, RuntimeError) as error:
      raise CheckpointError(
        f"saving step {step} in {self.folder} failed: {first_line(error)}; leave train.local.folder out, or name a "
        f"larger disk, and run the same command again"
      ) from error
    kept = {step, *self.manager.all_steps()}
    for old in (self.folder / "notes").glob("*.json"):
      if int(old.stem) not in kept:
        old.unlink(missing_ok=True)
        old.with_suffix(".files").unlink(missing_ok=True)
    threading.Thread(target=self._seal, args=(step,), name="seal", daemon=True).start()

  def restore(self, step: int, state, iterator) -> tuple[Any, dict, list[str]] | str:
    """(state, note, lines) of a step of `newest`, or the sentence that says why it is not used.

    state: abstract, its shardings decide the placement. CheckpointError: it could not be restored,
    and is removed.
    """
    note = self._note(step)
    if any(gather(note["processes"] != jax.process_count())):
      return f"step {step} on the hosts' disks is of {note['processes']} processes and is not used"
    restore_args = ocp.checkpoint_utils.construct_restore_args(state)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(item=state, restore_args=restore_args))
    try:
      out = self.manager.restore(step, args=args).state
      compared(note, out)  # alike on all processes
    except Exception as error:  # what is raised depends on what is wrong
      self._remove(step)
      raise CheckpointError(
        f"step {step} in {self.folder} cannot be restored ({first_line(error)}) and is removed; the same command "
        f"resumes from the run folder"
      ) from error
    iterator.set_state(note["data"])
    return out, note, [f"resumed at step {step}, which each host had on its own disk"]

  def _seal(self, step: int) -> None:
    """Writes down the files of a step once they are whole: Orbax renames its folder then."""
    folder, end = self.folder / "steps" / str(step), time.monotonic() + SEAL_S
    while not folder.is_dir():
      if time.monotonic() > end:
        return
      time.sleep(0.05)
    with contextlib.suppress(OSError):  # it was removed, for a newer one
      _write(self.folder / "notes" / f"{step}.files", _files(folder))

  def _note(self, step: int) -> dict:
    path = self.folder / "notes" / f"{step}.json"
    return notes.opened(json.loads(path.read_text()), f"step {step}")

  def _whole(self, step: int) -> bool:
    """Whether note and files are as they were written."""
    try:
      self._note(step)
      written = json.loads((self.folder / "notes" / f"{step}.files").read_text())
      return written == _files(self.folder / "steps" / str(step))
    except (OSError, ValueError, notes.Damaged):
      return False

  def _remove(self, step: int) -> None:
    shutil.rmtree(self.folder / "steps" / str(step), ignore_errors=True)
    (self.folder / "notes" / f"{step}.files").unlink(missing_ok=True)


def _write(path: pathlib.Path, value) -> None:
  draft = path.with_name(f"{path.name}.part")
  draft.write_text(json_text.dumps(value))
  os.replace(draft, path)


def _files(folder: pathlib.Path) -> dict[str, list[int]]:
  """{file: [bytes, CRC-32]} of a folder."""
  found = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file():
      crc = size = 0
      with open(path, "rb") as file:
        while piece := file.read(1 << 22):
          crc, size = zlib.crc32(piece, crc), size + len(piece)
      found[path.relative_to(folder).as_posix()] = [size, crc]
  return found


def check_local(folder: str, num_processes: int) -> None:
  """ConfigError where checkpoints on the hosts make no sense or cannot be."""
  if num_processes == 1:
    raise ConfigError(
      "train.local.folder keeps checkpoints on the disks of several hosts, and this is a run of one process, whose "
      "run folder is as near; leave it out"
    )
  if is_remote(folder):
    raise ConfigError(
      f"train.local.folder = {folder!r} is an address; give a folder on a disk of every host, such as a RAM disk"
    )
