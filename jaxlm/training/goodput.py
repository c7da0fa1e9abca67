"""Goodput: the part of a run's wall time that its steps took.

goodput = seconds in steps that count / seconds since the run was first started. Starting, compiling,
saving, evaluating, waiting for a machine, and steps that a restart made again do not count.
"""

import time
from typing import Any


class Goodput:
  """first_start: seconds since 1970. before: productive seconds that the checkpoint's note has,
  of which this process resumes.
  """

  def __init__(self, first_start: float, before: float = 0.0):
    self.first_start, self.before, self.here = first_start, before, 0.0

  @classmethod
  def of_run(cls, starts: list[dict[str, Any]], note: dict[str, Any]) -> "Goodput":
    """starts: run.json, oldest first. note: of the checkpoint, {} for a new run."""
    times = [s["started_unix"] for s in starts if isinstance(s.get("started_unix"), (int, float))]
    return cls(times[0] if times else time.time(), float(note.get("productive_s", 0.0)))

  @property
  def productive_s(self) -> float:
    """Up to the last log step."""
    return self.before + self.here

  def fraction(self) -> float:
    """In [0, 1]: a clock that was set back gives no more than 1."""
    wall = time.time() - self.first_start
    return min(self.productive_s / wall, 1.0) if wall > 0 else 1.0
