"""Checkpoints of a run: Orbax behind four calls.

A step is state + a note (format version, position in the data, config, revision, bucket). Saving is asynchronous; a
half-written step never counts; a damaged newest step, down to a flipped bit, is set aside and named, and the one
before is used. Any number of devices and processes reads what any other has written.
"""

import errno
import json
import pathlib
import re
import time
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxlm.config import ConfigError
from jaxlm.parallel.agree import from_first, gather
from jaxlm.training.checksum import changed, checksums
from jaxlm.training.folder import folder_path
from jaxlm.training.weights_folder import is_weights_folder, place, read_weights

FORMAT = 1
DISK_FULL = re.compile(r"No space left|ENOSPC|quota exceeded|File too large|RESOURCE_EXHAUSTED", re.IGNORECASE)


class CheckpointError(RuntimeError):
  """A checkpoint could not be written or read; the message says which, why, and what is still good."""


class Checkpoints:
  """The checkpoints of one run folder. `with Checkpoints(folder) as saved: ...` waits for the last write."""

  def __init__(self, folder, *, keep_last: int = 2, keep_every: int | None = None, asynchronous: bool = True):
    self.folder = folder_path(folder)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep_last, keep_period=keep_every, enable_async_checkpointing=asynchronous,
        cleanup_tmp_directories=True)    # what a full disk or a killed process has left behind
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

  def save(self, step: int, state, iterator, note: dict[str, Any]) -> None:
    """Copies the state to the host, then writes in the background. Raises what an earlier write has met."""
    if step in self.manager.all_steps():
      return
    try:
      self.manager.save(step, force=True, args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          note=ocp.args.JsonSave({"format": FORMAT, "data": iterator.get_state(),
                                 "checksums": checksums(state), **note})))
    except (OSError, ValueError, RuntimeError) as error:
      raise self._explain(error, step) from error

  def wait(self) -> None:
    try:
      self.manager.wait_until_finished()
      self.manager.check_for_errors()
    except (OSError, ValueError, RuntimeError) as error:
      raise self._explain(error) from error

  def restore(self, state, iterator) -> tuple[Any, dict, list[str]]:
    """(state, note, lines) of the newest step that every process can read; the iterator is moved in place.

    state: abstract, its shardings decide the placement, whatever wrote the step. lines: a sentence for each damaged
    step, which is moved to `damaged/`, and one that says how long it took. Raises CheckpointError if no step can be read.
    """
    damaged, start = [], time.perf_counter()
    # In Orbax's own restore a process that can read its part waits for one that cannot.
    alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()},
                                               barrier_sync_key_prefix=f"restore{jax.process_index()}")
    options = ocp.CheckpointManagerOptions(read_only=True, **(
        {"multiprocessing_options": alone} if jax.process_count() > 1 else {}))
    with ocp.CheckpointManager(self.folder, options=options) as manager:
      for step in reversed(self.steps()):
        try:
          out = manager.restore(step, args=ocp.args.Composite(
              state=ocp.args.StandardRestore(state), note=ocp.args.JsonRestore()))
          trouble = _wrong(changed(out.note.get("checksums", {}), out.state))
        except Exception as error:    # what a damaged file raises depends on which file it is
          trouble = _first_line(error)
        trouble = next((text for text in gather(trouble) if text), None)
        if trouble:
          damaged.append((step, f"checkpoint {self.folder / str(step)} cannot be read ({trouble})"))
          continue
        if out.note["format"] > FORMAT:
          raise CheckpointError(f"checkpoint {self.folder / str(step)} has format {out.note['format']}, this version of "
                                f"jaxlm reads up to {FORMAT}; use a newer one")
        between = time.perf_counter()
        # Now with another state than what was read from, it would be another run: that is an error of its own.
        iterator.set_state(out.note["data"] if "data" in out.note else self._old_position(step))
        end = time.perf_counter()
        # Only now: had none been readable, the fault would be ours and the files good.
        lines = [f"{text}; moved to {self._set_aside(bad)}, resuming from step {step}" for bad, text in damaged]
        lines.append(f"resumed at step {step} in {end - start:.2f} s: state {between - start:.2f} s, "
                     f"data {end - between:.2f} s")
        return out.state, out.note, lines
    listed = "; ".join(text for _, text in damaged) or "it holds no complete step"
    raise CheckpointError(f"no checkpoint in {self.folder} can be read: {listed}")

  def _old_position(self, step: int) -> dict:
    """From the files of each process that checkpoints had before the position was in the note; all said the same."""
    return json.loads(next(iter((self.folder / str(step) / "data").glob("process_*.json"))).read_text())

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
    steps = [s for s in sorted(self.manager.all_steps()) if s != step]    # this process's view: others may not fail
    good = f"the checkpoints of steps {', '.join(map(str, steps))} are intact" if steps else "no step is saved yet"
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or DISK_FULL.search(str(error))
    what = "the disk is full" if full else _first_line(error)
    return CheckpointError(f"saving a checkpoint in {self.folder} failed: {what}; {good}. "
                           f"Free space there and run the same command again to resume.")


def restore_params(folder, *, step: int | None = None, params=None, ema: bool = False):
  """The parameters of a run, or their average, alone: (params, note, step).

  folder: the run folder or its `checkpoints`. params: abstract tree with shardings, None: as saved, on one device. With it
  also a weights folder, whose note is empty and step None.
  """
  if is_weights_folder(folder) and params is not None:
    if step is not None or ema:
      raise ConfigError(f"{folder} is a weights folder: it has no steps and no average to choose from")
    return place(read_weights(folder), params, str(folder)), {}, None
  folder = folder_path(folder)
  folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
  if not folder.is_dir():
    raise ConfigError(f"{folder} is not a run folder: it holds no checkpoints")
  handlers = {"state": ocp.PyTreeCheckpointHandler(), "note": ocp.JsonCheckpointHandler()}
  with ocp.CheckpointManager(folder, item_handlers=handlers, options=ocp.CheckpointManagerOptions(read_only=True)) as m:
    step = m.latest_step() if step is None else step
    if step is None or step not in m.all_steps():
      there = ", ".join(map(str, sorted(m.all_steps()))) or "none"
      raise ConfigError(f"{folder} has no complete checkpoint{'' if step is None else f' of step {step}'}; steps: {there}")
    name = "ema" if ema else "params"
    saved = m.item_metadata(step)["state"]
    saved = getattr(saved, "tree", saved)
    if saved.get(name) is None:
      raise ConfigError(f"the run {folder} keeps no average of its parameters; set train.ema_decay")
    if params is None:
      device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved[name])
    item = {name: params}
    out = m.restore(step, args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(item=item, partial_restore=True,
                                     restore_args=ocp.checkpoint_utils.construct_restore_args(item)),
        note=ocp.args.JsonRestore()))
  as_saved = jax.tree.map(lambda x, meta: x if x.dtype == meta.dtype else None, out.state[name], saved[name])
  wrong = _wrong(changed(out.note.get("checksums", {}), as_saved, f"{name}/"))
  if wrong:
    raise ConfigError(f"checkpoint {folder / str(step)} is damaged: {wrong}; take another step")
  return out.state[name], out.note, step


def initial_params(folder, params):
  """Parameters to begin with, from a run's newest step or a weights folder. params: abstract tree with shardings."""
  what = f"train.init_from = {str(folder)!r}"
  if is_weights_folder(folder):
    return place(read_weights(folder), params, what)
  stored, _, _ = restore_params(folder)
  stored = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree.leaves_with_path(stored)}
  return place(stored, params, what)


def _wrong(names: list[str]) -> str | None:
  if not names:
    return None
  others = f" and {len(names) - 1} more" if len(names) > 1 else ""
  return f"the bytes of {names[0]}{others} are not those that were written"


def _first_line(error: Exception) -> str:
  text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
  return f"{type(error).__name__}: {text[:300]}"
