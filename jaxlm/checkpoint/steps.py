"""The steps of a run that trains: Orbax behind four calls.

A step is state + a note (`jaxlm.checkpoint.notes`). Saving is asynchronous; a half-written step
never counts; a damaged newest step, down to a flipped bit, is set aside and named, and the one
before is used. Any number of devices and processes reads what any other has written. Who only reads
a run uses `jaxlm.checkpoint.reading`.
"""

import errno
import json
import pathlib
import re
import time
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxlm.checkpoint import notes
from jaxlm.checkpoint.checksums import checksums
from jaxlm.checkpoint.errors import CheckpointError
from jaxlm.checkpoint.locations import folder_path
from jaxlm.checkpoint.reading import compared, first_line, newest, read_note, reading_options
from jaxlm.checkpoint.rotation import Rotation
from jaxlm.parallel.agree import from_first, gather
from jaxlm.paths import RIGHTS, denied

DISK_FULL = re.compile(
  r"No space left|ENOSPC|quota exceeded|File too large|RESOURCE_EXHAUSTED", re.IGNORECASE
)


class Checkpoints:
  """The checkpoints of one run folder. `with Checkpoints(folder) as saved: ...` waits for the last
  write.
  """

  def __init__(
    self, folder, *, keep_last: int = 2, keep_every: int | None = None, asynchronous: bool = True
  ):
    self.folder = folder_path(folder)
    self.rotation = Rotation(keep_last, keep_every)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self.rotation,
      enable_async_checkpointing=asynchronous,
      cleanup_tmp_directories=True,
    )  # what a full disk or a killed process has left behind
    self.manager = ocp.CheckpointManager(self.folder, options=options)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.wait()
    except CheckpointError:
      if kind is None:
        raise
    finally:
      self.manager.close()

  def steps(self) -> list[int]:
    """Complete steps, oldest first; every process must ask, and hears what the first one sees."""
    return from_first(sorted(self.manager.all_steps()))

  def save(self, step: int, state, iterator, note: dict[str, Any], *, rotate: bool = True) -> None:
    """Copies the state to the host, then writes in the background. Raises what an earlier write has
    met.

    rotate: older steps are removed when this one is whole, as far as keep_last and keep_every let
    them.
    """
    if step in self.manager.all_steps():
      return
    self.rotation.paused = not rotate
    try:
      self.manager.save(
        step,
        force=True,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          note=ocp.args.JsonSave(
            notes.sealed(
              {
                "format": notes.FORMAT,
                "data": iterator.get_state(),
                "checksums": checksums(state),
                **note,
              }
            )
          ),
        ),
      )
    except Exception as error:  # object stores have errors of their own
      if isinstance(error, (OSError, ValueError, RuntimeError)) or denied(error):
        raise self._explain(error, step) from error
      raise

  def wait(self) -> None:
    try:
      self.manager.wait_until_finished()
      self.manager.check_for_errors()
    except Exception as error:
      if isinstance(error, (OSError, ValueError, RuntimeError)) or denied(error):
        raise self._explain(error) from error
      raise

  def restore(self, state, iterator) -> tuple[Any, dict, list[str]]:
    """(state, note, lines) of the newest step that every process can read; the iterator is moved in
    place.

    state: abstract, its shardings decide the placement, whatever wrote the step. lines: a sentence
    for each damaged step, which is moved to `damaged/`, and one that says how long it took. Raises
    CheckpointError if no step can be read.
    """
    start = time.perf_counter()
    with ocp.CheckpointManager(self.folder, options=reading_options()) as manager:

      def read(step):
        note = read_note(manager, step)
        out = manager.restore(
          step, args=ocp.args.Composite(state=ocp.args.StandardRestore(state))
        ).state
        compared(note, out)
        return out, note

      step, (out, note), damaged = newest(self.folder, self.steps(), read)
    between = time.perf_counter()
    # Now with another state than what was read from, it would be another run: that is an error of
    # its own.
    iterator.set_state(note["data"] if "data" in note else self._old_position(step))
    end = time.perf_counter()
    # Only now: had none been readable, the fault would be ours and the files good.
    lines = [
      f"{text}; moved to {self._set_aside(bad)}, resuming from step {step}" for bad, text in damaged
    ]
    lines.append(
      f"resumed at step {step} in {end - start:.2f} s: state {between - start:.2f} s, data {end - between:.2f} s"
    )
    return out, note, lines

  def _old_position(self, step: int) -> dict:
    """From the files of each process that checkpoints had before the position was in the note; all
    said the same.
    """
    return json.loads(
      next(iter((self.folder / str(step) / "data").glob("process_*.json"))).read_text()
    )

  def _set_aside(self, step: int) -> pathlib.Path:
    target = self.folder.parent / "damaged" / str(step)
    if jax.process_index() == 0:
      target.parent.mkdir(exist_ok=True)
      while target.exists():
        target = target.with_name(target.name + "x")
      (self.folder / str(step)).rename(target)
    gather(None)
    self.manager.reload()
    return target

  def _explain(self, error: Exception, step: int | None = None) -> CheckpointError:
    steps = [
      s for s in sorted(self.manager.all_steps()) if s != step
    ]  # this process's view: others may not fail
    good = (
      f"the checkpoints of steps {', '.join(map(str, steps))} are intact"
      if steps
      else "no step is saved yet"
    )
    full = getattr(error, "errno", None) in (
      errno.ENOSPC,
      errno.EDQUOT,
      errno.EFBIG,
    ) or DISK_FULL.search(str(error))
    what = "the disk is full" if full else first_line(error)
    remedy = f"{RIGHTS[0].upper()}{RIGHTS[1:]}" if denied(error) else "Free space there"
    return CheckpointError(
      f"saving a checkpoint in {self.folder} failed: {what}; {good}. "
      f"{remedy}, and run the same command again to resume."
    )
