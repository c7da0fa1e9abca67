"""Reading the steps of a run: the newest that is whole, and one sentence for each that is not."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxlm.checkpoint import notes
from jaxlm.checkpoint.checksums import checksums, differing, word_sums
from jaxlm.checkpoint.errors import CheckpointError
from jaxlm.checkpoint.locations import folder_path
from jaxlm.checkpoint.notes import Damaged
from jaxlm.config import ConfigError
from jaxlm.parallel.agree import gather
from jaxlm.parallel.rules import path_name

PyTree = Any


class Restored(NamedTuple):
  """Parameters of a step. lines: a sentence for each newer step that is damaged."""

  params: PyTree
  note: dict
  step: int
  lines: list[str]


def newest(
  folder, steps: Sequence[int], read: Callable[[int], Any], *, agreed: bool = True
) -> tuple[int, Any, list[tuple[int, str]]]:
  """(step, read(step), [(damaged step, sentence)]) of the newest step that `read` takes on every
  process.

  Every process must call it, with the same steps; agreed = False: this process asks for itself
  alone. CheckpointError if `read` takes none.
  """
  damaged = []
  for step in sorted(steps, reverse=True):
    out = None
    try:
      out, trouble = read(step), None
    except (ConfigError, CheckpointError):
      raise
    except Exception as error:  # what a damaged file raises depends on which file it is
      trouble = first_line(error)
    trouble = next((text for text in (gather(trouble) if agreed else [trouble]) if text), None)
    if trouble is None:
      return step, out, damaged
    damaged.append((step, f"checkpoint {folder / str(step)} cannot be read ({trouble})"))
  listed = "; ".join(text for _, text in damaged) or "it holds no complete step"
  raise CheckpointError(f"no checkpoint in {folder} can be read: {listed}")


def restore_params(
  folder, *, step: int | None = None, params: PyTree = None, ema: bool = False
) -> Restored:
  """The parameters of a run, or their average, alone.

  folder: the run folder or its `checkpoints`. step: None: the newest that is not damaged. params:
  abstract tree with shardings; None: as saved, on one device. ConfigError: no such run, step or
  average. CheckpointError: damaged.
  """
  folder = checkpoints_of(folder)
  handlers = {"state": ocp.PyTreeCheckpointHandler(), "note": ocp.JsonCheckpointHandler()}
  options = reading_options()
  with ocp.CheckpointManager(folder, item_handlers=handlers, options=options) as manager:
    there = sorted(manager.all_steps())
    _check_there(folder, there, step)

    def read(step):
      note = read_note(manager, step)
      name, saved = "ema" if ema else "params", _metadata(manager, step)
      if saved.get(name) is None:
        if any(array.startswith(f"{name}/") for array in note["checksums"]):
          raise Damaged(f"it was written with {name}, which its files no longer name")
        raise ConfigError(
          f"the run {folder} keeps no average of its parameters; set train.ema_decay"
        )
      shapes = {
        path_name(path): tuple(x.shape) for path, x in jax.tree.leaves_with_path(saved[name])
      }
      written = {
        array.removeprefix(f"{name}/")
        for array in note["checksums"]
        if array.startswith(f"{name}/")
      }
      if written != set(shapes):
        raise Damaged(
          f"its files and its note name different arrays, among them {min(written ^ set(shapes))}"
        )
      if params is not None:
        fit(shapes, params, f"checkpoint {folder / str(step)}")
      item = {name: _on_one_device(saved[name]) if params is None else params}
      out = manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(
            item=item,
            partial_restore=True,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
          )
        ),
      ).state[name]
      # Numbers that were cast on the way cannot be compared.
      compared(
        note,
        jax.tree.map(lambda x, meta: x if x.dtype == meta.dtype else None, out, saved[name]),
        f"{name}/",
      )
      return out, note

    try:
      found, (out, note), damaged = newest(folder, there if step is None else [step], read)
    except CheckpointError as error:
      others = [str(s) for s in there if s != step]
      raise CheckpointError(
        f"{error}" + (f"; other steps: {', '.join(others)}" if step is not None and others else "")
      ) from None
  return Restored(
    out, note, found, [f"{text}; step {found} is read instead" for _, text in damaged]
  )


def newest_config(folder) -> dict | None:
  """The configuration that the newest readable note of a run holds; None without a readable one.

  Asks no other process.
  """
  note = newest_note(folder)
  return None if note is None else note["config"]


def newest_note(folder) -> dict | None:
  """The newest readable note of a run; None without one. Asks no other process."""
  try:
    return note_of(folder)[1]
  except (ConfigError, CheckpointError):
    return None


def note_of(folder, step: int | None = None) -> tuple[int, dict]:
  """(step, its note). step: None: the newest whose note can be read. Asks no other process.

  ConfigError: no such run or step. CheckpointError: damaged.
  """
  folder = checkpoints_of(folder)
  with ocp.CheckpointManager(
    folder,
    item_handlers={"note": ocp.JsonCheckpointHandler()},
    options=reading_options(),
  ) as manager:
    there = sorted(manager.all_steps())
    _check_there(folder, there, step)
    steps = there if step is None else [step]
    found, note, _ = newest(folder, steps, lambda step: read_note(manager, step), agreed=False)
  return found, note


def _check_there(folder, there: Sequence[int], step: int | None) -> None:
  if not there or step is not None and step not in there:
    raise ConfigError(
      f"{folder} has no complete checkpoint{'' if step is None else f' of step {step}'}; "
      f"steps: {', '.join(map(str, there)) or 'none'}"
    )


def read_note(manager, step: int) -> dict:
  """The note of a step. Damaged, CheckpointError (of a newer jaxlm), or what Orbax raises."""
  raw = manager.restore(step, args=ocp.args.Composite(note=ocp.args.JsonRestore())).note
  return notes.opened(raw, f"checkpoint {manager.directory / str(step)}")


def checkpoints_of(folder):
  """The folder of the steps of a run folder, or of that folder itself."""
  folder = folder_path(folder)
  folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
  if not folder.is_dir():
    raise ConfigError(f"{folder} is not a run folder: it holds no checkpoints")
  return folder


def fit(shapes: dict[str, tuple[int, ...]], params: PyTree, what: str) -> None:
  """ConfigError unless the stored {name: shape} are those of `params`. what: the subject of the
  sentence.
  """
  wanted = {path_name(path): tuple(x.shape) for path, x in jax.tree.leaves_with_path(params)}
  wrong = sorted(name for name in {*shapes, *wanted} if shapes.get(name) != wanted.get(name))
  if wrong:
    name = wrong[0]
    raise ConfigError(
      f"{what} does not fit the model in {len(wrong)} parameters, among them {name}: "
      f"{shapes.get(name, 'absent')} there, {wanted.get(name, 'absent')} here"
    )


def compared(note: dict, tree: PyTree, at: str = "") -> None:
  """Raises Damaged unless the arrays are those of the note. at: where the tree lies in the state."""
  found = (word_sums if note["format"] == 1 else checksums)(tree)
  names = differing(note["checksums"], found, at)
  if names:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise Damaged(f"the bytes of {at}{names[0]}{others} are not those that were written")


def reading_options() -> ocp.CheckpointManagerOptions:
  """Options of a manager that only reads, by each process for itself.

  Orbax warns of every default that reading alone does not have, and that the folder is not written
  to. The defaults are named here, and that warning is not logged.
  """
  absl = logging.getLogger("absl")
  if _not_of_reading not in absl.filters:
    absl.addFilter(_not_of_reading)
  return ocp.CheckpointManagerOptions(
    read_only=True, create=False, save_interval_steps=0, **alone()
  )


def _not_of_reading(record: logging.LogRecord) -> bool:
  return "Given directory is read only" not in str(record.msg)


def alone() -> dict:
  """Options of a manager under which each process reads for itself.

  In Orbax's own restore a process that can read its part waits for one that cannot.
  """
  if jax.process_count() == 1:
    return {}
  me = jax.process_index()
  return {
    "multiprocessing_options": ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"restore{me}"
    )
  }


def first_line(error: Exception) -> str:
  text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
  return text[:300] if isinstance(error, Damaged) else f"{type(error).__name__}: {text[:300]}"


def _metadata(manager, step: int):
  saved = manager.item_metadata(step)["state"]
  return getattr(saved, "tree", saved)


def _on_one_device(saved):
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
