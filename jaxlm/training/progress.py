"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Display:
  """quiet: says nothing (all processes but the first, and library use)."""

  def __init__(self, total: int, step: int, *, quiet: bool = False):
    self.quiet, self.total = quiet, total
    self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    self.bar = None
    if not quiet and self.console.is_terminal:
      self.bar = Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(24),
        TextColumn("{task.fields[text]}"),
        console=self.console,
        transient=True,
      )
      self.task = self.bar.add_task("", total=total, completed=step, text="compiling")
      self.bar.start()

  def say(self, text: str) -> None:
    if not self.quiet:
      self.console.print(text, markup=False)

  def update(self, step: int, values: dict[str, float], seconds_left: float | None) -> None:
    if self.quiet:
      return
    text = describe(values) + (
      f"  {duration(seconds_left)} left" if seconds_left is not None else ""
    )
    if self.bar:
      self.bar.update(self.task, completed=step, text=text)
    else:
      self.console.print(f"step {step}/{self.total}  {text}", markup=False)

  def close(self) -> None:
    if self.bar:
      self.bar.stop()


class Rate:
  """Seconds per step since the last log; what was spent on saving, evaluating and compiling is left
  out. total: seconds of all steps so far.
  """

  def __init__(self):
    self.start, self.away, self.num_steps, self.total = time.perf_counter(), 0.0, 0, 0.0

  def lap(self) -> float | None:
    now, num_steps = time.perf_counter(), self.num_steps
    seconds, self.start, self.away, self.num_steps = now - self.start - self.away, now, 0.0, 0
    if not num_steps:
      return None
    self.total += max(seconds, 1e-9)
    return max(seconds, 1e-9) / num_steps

  def pause(self, seconds: float) -> None:
    self.away += seconds


def describe(values: dict[str, float]) -> str:
  parts = [f"loss {values['loss']:.4f}"]
  if "tokens_per_s" in values:
    parts.append(f"{count(values['tokens_per_s'])} tokens/s")
  if "mfu" in values:
    parts.append(f"MFU {values['mfu']:.2f}")
  if "goodput" in values:
    parts.append(f"goodput {values['goodput']:.2f}")
  if values.get("skipped"):
    parts.append(f"{values['skipped']:.0f} skipped")
  return "  ".join(parts)


def count(number: float) -> str:
  for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if number >= size:
      return f"{number / size:.3g}{letter}"
  return f"{number:.3g}"


def duration(seconds: float) -> str:
  seconds = int(seconds)
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60:02d} s"
  return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
