"""What a measured row keeps of its making: where and with what it was trained and evaluated, and
what that cost.

A record is {"revision", "command", "date", "device", "cpu", "cores", "load", "wall_s", "core_s"}.
Training has one record per start of the run, evaluation has one. core_s is CPU time of all threads
of the process; wall_s and core_s are None for a start that was killed before it could write them.
"""

import contextlib
import datetime
import functools
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from jaxlm import json_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRACE_POINTS = 64


def made_by() -> dict:
  """The record of this process, without its cost."""
  import jax

  from jaxlm.training.provenance import revision

  device = jax.devices()[0]
  return {
    "revision": revision(),
    "command": command_line(),
    "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    "device": f"{jax.device_count()} x {device.device_kind}",
    "cpu": cpu_model(),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "load": round(os.getloadavg()[0], 1),
  }


def command_line() -> str:
  """The command of this process. Absolute paths are from the repository's root, or the last name of a
  path outside."""
  name = pathlib.Path(sys.argv[0]).name
  started = "jaxlm" if name in ("jaxlm", "cli.py") else f"python {_relative(sys.argv[0])}"
  return " ".join([started, *(shlex.quote(_shown(word)) for word in sys.argv[1:])])


def cpu_model() -> str:
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    return "unknown"


@contextlib.contextmanager
def cost(record: dict) -> Iterator[dict]:
  """Adds wall_s and core_s of the block to the record, also if the block raises."""
  wall, core = time.time(), time.process_time()
  try:
    yield record
  finally:
    record |= {
      "wall_s": round(time.time() - wall, 1),
      "core_s": round(time.process_time() - core, 1),
    }


def starts_file(run_folder) -> pathlib.Path:
  """Beside the run folder and not in it, where the run refuses files that it does not know."""
  folder = pathlib.Path(run_folder)
  return folder.with_name(f"{folder.name}-training.json")


def starts(run_folder) -> list[dict]:
  """The records of a run's training so far, oldest first."""
  path = starts_file(run_folder)
  return json.loads(path.read_text()) if path.exists() else []


@contextlib.contextmanager
def training(run_folder) -> Iterator[None]:
  """Appends the record of one start of a run. A run that was finished before gets none."""
  if _finished(run_folder):
    yield
    return
  before, record = starts(run_folder), made_by() | {"wall_s": None, "core_s": None}
  try:
    _write(starts_file(run_folder), [*before, record])
    with cost(record):
      yield
  finally:
    _write(starts_file(run_folder), [*before, record])


def loss_trace(run_folder) -> dict[str, list[float]]:
  """{"step": [..], "loss": [..]} of the training, at most TRACE_POINTS entries; {} if none was
  logged."""
  from jaxlm.training import metrics

  found = [(r["step"], r["loss"]) for r in metrics.read(run_folder) if "loss" in r]
  found = found[:: -(-len(found) // TRACE_POINTS) or 1]
  if not found:
    return {}
  return {"step": [s for s, _ in found], "loss": [round(float(loss), 4) for _, loss in found]}


def total(records: Sequence[Mapping], key: str) -> float | None:
  """Sum of wall_s or core_s over starts; None if one of them is not known."""
  values = [record.get(key) for record in records]
  return None if None in values or not values else round(sum(values), 1)


def stale(records: Sequence[Mapping]) -> str:
  """Why a row that was trained with these records cannot be made again from the current history,
  or ''. Outside a repository nothing is known, and nothing is stale."""
  if not is_ancestor("HEAD"):
    return ""
  if not records:
    return "its training was not recorded"
  for revision in dict.fromkeys(record["revision"] for record in records):
    if revision.endswith("+"):
      return f"trained at {revision}: files differed from that revision"
    if not is_ancestor(revision):
      return f"trained at {revision}, which is not an ancestor of HEAD"
  return ""


@functools.cache
def is_ancestor(revision: str) -> bool:
  """Whether a revision is in the history of HEAD."""
  try:
    command = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", revision, "HEAD"]
    return subprocess.run(command, capture_output=True).returncode == 0
  except OSError:
    return False


def _finished(run_folder) -> bool:
  path = pathlib.Path(run_folder) / "result.json"
  try:
    return bool(json.loads(path.read_text()).get("finished"))
  except (OSError, ValueError):
    return False


def _relative(path: str) -> str:
  path = pathlib.Path(path).resolve()
  return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _shown(word: str) -> str:
  flag, equals, path = word.rpartition("=")
  return f"{flag}{equals}{_relative(path)}" if path.startswith("/") else word


def _write(path: pathlib.Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".tmp")
  partial.write_text(json_text.dumps(value, indent=1))
  partial.rename(path)
