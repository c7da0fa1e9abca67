"""A run that does not go on says where it stands: the stack of every thread, on every host.

A collective that one host never enters hangs all hosts without a word. Each process therefore
watches itself: when a step takes many times as long as steps usually do, it prints its stacks on
standard error, which is that host's log. All hosts of a hanging step do so at about the same time;
the one whose stack differs is the one to look at.
"""

import collections
import dataclasses
import faulthandler
import os
import signal
import statistics
import sys
import threading
import time
from typing import Annotated

from jaxlm.config import checked
from jaxlm.ranges import Count, Range

#: Exit code of a process that ended itself because it hung (`train.hang.ends`).
HUNG = 76
#: Seconds that no step is shorter than for the watchdog: a network file system may be slow.
LEAST_S = 60.0
#: Steps that are timed before there is a usual time. The host runs ahead of the device first.
WARM_UP = 16


@dataclasses.dataclass(frozen=True)
@checked
class HangConfig:
  """When a run counts as hanging, and what is done.

  factor: a step that takes so many times the median of the last steps, and at least a minute;
  None: never. longest_s: seconds after which starting, compiling, saving or evaluating counts as
  hanging: they have no usual time. ends: the process ends with code 76 after it has printed its
  stacks, so that a restart loop goes on from the newest checkpoint.
  """

  factor: Annotated[float, Range(1, open_low=True)] | None = 50.0
  longest_s: Count = 1800
  ends: bool = False


class Watchdog:
  """`with Watchdog(cfg, who) as watchdog:` and a call at everything that begins.

  who: this process, as in 'process 3 of 64'. file: descriptor that stacks are written to.
  """

  def __init__(self, cfg: HangConfig, who: str, file: int = 2):
    self.cfg, self.who, self.file = cfg, who, file
    self.intervals = collections.deque(maxlen=64)
    self.what, self.since, self.usual = "starting", time.monotonic(), None
    self.allowed, self.ended, self.thread = float(cfg.longest_s), threading.Event(), None

  def __enter__(self):
    if self.cfg.factor is not None:
      self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
      self.thread.start()
    return self

  def __exit__(self, *_):
    self.ended.set()
    if self.thread is not None:
      self.thread.join(timeout=1)

  def step(self, number: int) -> None:
    """Step `number` begins, and so the one before has ended."""
    now = time.monotonic()
    if self.usual is not None:
      self.intervals.append(now - self.since)
    self.usual = statistics.median(self.intervals) if self.intervals else 0.0
    warm = len(self.intervals) >= WARM_UP
    limit = max(LEAST_S, (self.cfg.factor or 1) * self.usual) if warm else self.cfg.longest_s
    self.what, self.since, self.allowed = f"step {number}", now, float(limit)

  def unusual(self, what: str) -> None:
    """Something begins that may take long: 'compiling', 'saving', 'evaluating'."""
    self.what, self.since, self.usual = what, time.monotonic(), None
    self.allowed = float(self.cfg.longest_s)

  def _watch(self) -> None:
    while not self.ended.wait(min(LEAST_S, self.cfg.longest_s) / 10):
      what, since, usual = self.what, self.since, self.usual
      taken = time.monotonic() - since
      if taken <= self.allowed or since != self.since:
        continue
      times = f", usual are {usual:.3g} s" if usual else ""
      self._print(
        f"jaxlm: {self.who} may hang: {what} has taken {taken:.0f} s so far{times} (train.hang). The "
        f"stack of each of its threads:"
      )
      self.allowed = 2 * taken  # said again when it has taken twice as long
      if self.cfg.ends:
        self._print(
          f"jaxlm: {self.who} ends with code {HUNG} (train.hang.ends); the same command resumes from the "
          f"newest checkpoint"
        )
        sys.stdout.flush()
        os._exit(HUNG)

  def _print(self, sentence: str) -> None:
    os.write(self.file, f"{sentence}\n".encode())
    if sentence.endswith(":"):
      faulthandler.dump_traceback(self.file, all_threads=True)


def stacks_on_request() -> None:
  """`kill -USR1` of a process prints its stacks, and goes on; a fault in native code prints them too."""
  try:
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
  except (AttributeError, OSError, ValueError):  # no such signal here
    pass
