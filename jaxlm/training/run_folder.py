"""Opening the folder of a run to write to it: is it this run's, is it free, has it lost anything."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from jaxlm.checkpoint.json_files import read_json, write_json
from jaxlm.checkpoint.locations import check_name, folder_path
from jaxlm.checkpoint.opening import run_mapping
from jaxlm.config import ConfigError
from jaxlm.parallel.agree import from_first
from jaxlm.training.config import RunConfig, differences, plain, resolved, run_config
from jaxlm.training.metrics import read
from jaxlm.training.provenance import provenance
from jaxlm.training.run_lock import LOCK, hold

#: What may change when a run is resumed: where and how often, never what is computed.
MAY_CHANGE_ON_RESUME = (
  "mesh",
  "eval",
  "train.max_skipped",
  "train.max_skipped_fraction",
  "train.log_every",
  "train.save_every",
  "train.keep_last",
  "train.keep_every",
  "train.profile",
  "train.hang",
  "train.tracker",
  "train.local",
  "train.debug",
)


@dataclasses.dataclass(frozen=True)
class OpenFolder:
  """A run folder to write to. lock: of the first process, None in the others. lines: what there is
  to say about it.
  """

  folder: Any
  lock: Any
  lines: list[str]

  def check(self) -> None:
    """LockLost where another process has taken it over."""
    if self.lock is not None:
      self.lock.check()


@contextlib.contextmanager
def open_folder(
  workdir, cfg: RunConfig, *, new: bool = False, take_over: bool = False
) -> Iterator[OpenFolder]:
  """Creates the run folder, or checks that the run in it is this one, and locks it.

  The first process does it for all.
  """
  folder, refused, lock, lines = folder_path(workdir), None, None, []
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      try:
        check_name(folder)
        begun(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context(hold(folder, take_over=take_over, say=lines.append))
        _open(folder, cfg, new)
      except ConfigError as error:
        refused = str(error)
    refused = from_first(refused)
    if refused:
      raise ConfigError(refused)
    yield OpenFolder(folder, lock, lines)


def begun(folder) -> bool:
  """Whether the folder holds a run. ConfigError where it holds something else.

  A run that was refused before it had its data has left nothing to protect.
  """
  found = folder.exists() and any(
    entry.name not in ("config.json", "run.json") and not entry.name.startswith(LOCK)
    for entry in folder.iterdir()
  )
  # A lost config.json is in every checkpoint's note.
  if found and not (folder / "config.json").exists() and not (folder / "checkpoints").is_dir():
    raise ConfigError(
      f"{folder} exists, is not empty and is not a run folder; choose another --workdir"
    )
  return found


def _open(folder, cfg: RunConfig, new: bool) -> None:
  path, now = folder / "config.json", resolved(cfg)
  if begun(folder):
    if new:
      raise ConfigError(
        f"{folder} holds a run already; leave out --new to resume it, or choose another --workdir"
      )
    _refuse_other_config(folder, run_mapping(folder), cfg)
  write_json(path, now)
  starts = starts_of(folder)
  write_json(folder / "run.json", [*starts, provenance()])
  (folder / "result.json").unlink(missing_ok=True)


def starts_of(folder) -> list:
  """The starts so far. They are provenance only: a damaged file is begun anew and does not stop a
  run.
  """
  path = folder / "run.json"
  try:
    return read_json(path, list) if path.exists() else []
  except ConfigError:
    return []


def _refuse_other_config(folder, stored: dict, cfg: RunConfig) -> None:
  try:  # fields that have been added since have had their default
    old = resolved(run_config(stored))
  except ConfigError:
    old = plain(stored)
  found = [
    (key, a, b)
    for key, a, b in differences(old, resolved(cfg))
    if not any(key == allowed or key.startswith(allowed + ".") for allowed in MAY_CHANGE_ON_RESUME)
  ]
  steps = next(((a, b) for key, a, b in found if key == "train.steps"), None)
  if steps is not None and len(found) == 1:
    kind = type(cfg.schedule).__name__
    if cfg.schedule.needs_num_steps:
      raise ConfigError(
        f"{folder} is a run of train.steps = {steps[0]}, not {steps[1]}, and its schedule {kind} depends "
        f"on that number: all learning rates so far would have been others. Choose another --workdir, "
        f"or a schedule that can be extended (constant, inverse_sqrt)"
      )
    if steps[1] >= steps[0]:
      return
  if found:
    lines = "\n".join(f"  {key}: {a!r} there, {b!r} now" for key, a, b in found)
    raise ConfigError(
      f"{folder} holds a run with another configuration; choose another --workdir, or take these back:\n"
      f"{lines}"
    )


def lost_checkpoints(folder, save_every: int, had_folder: bool) -> str | None:
  """Why a run without a checkpoint may not begin again: it has had some, and beginning again
  forgets its metrics.

  A run that was killed before its first checkpoint was whole begins again. The first is whole when
  the second is begun.
  """
  steps = [
    record["step"] for record in read(folder) if "loss" in record and not record.get("skipped")
  ]
  if not steps or (had_folder and not (save_every and max(steps) > 2 * save_every)):
    return None
  return (
    f"{folder} has no checkpoint, but its metrics.jsonl goes to step {max(steps)}: {folder / 'checkpoints'} was emptied or "
    f"removed. Put it back to resume; to begin again from step 0 choose another --workdir, or remove metrics.jsonl"
  )
