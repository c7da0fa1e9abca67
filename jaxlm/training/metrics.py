"""What a run writes down: metrics.jsonl, TensorBoard events, curves.png.

One process writes, the first.
"""

import io
import json
import math

from jaxlm import json_text
from jaxlm.checkpoint.json_files import write_text
from jaxlm.checkpoint.locations import folder_path
from jaxlm.config import ConfigError
from jaxlm.training.events import EventFile
from jaxlm.training.mirror import Mirror
from jaxlm.training.tracker import Tracker

JSONL, EVENTS, CURVES = "metrics.jsonl", "events", "curves.png"


def read(workdir) -> list[dict]:
  """All records of a run, oldest first: {"step": 10, "loss": ...} and {"step": 10, "eval/loss":
  ...}; nan is a float.
  """
  path = folder_path(workdir) / JSONL
  if not path.exists():
    return []
  records, lines = [], path.read_bytes().splitlines()
  for number, line in enumerate(lines, 1):
    try:
      record = json_text.number(json.loads(line))
      if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError("no record of a step")
      records.append(record)
    except (ValueError, RecursionError):
      # The last line may be half written when a machine dies; anything else is not our doing.
      if number < len(lines):
        raise ConfigError(
          f"{path}, line {number}, is not JSON that a run has written: {line[:80]!r}; take the line out, or put "
          f"back a copy of the file"
        ) from None
  return records


class Writer:
  """Appends records, and hands them to a tracker if there is one; opening at step S forgets what an interrupted run wrote after S, which will
  come again.
  """

  def __init__(self, workdir, step: int, tracker: Tracker | None = None):
    self.tracker = tracker
    self.mirror = Mirror(workdir)
    path = self.mirror.local / JSONL
    kept = [record for record in read(workdir) if record["step"] <= step]
    write_text(folder_path(path), "".join(json_text.dumps(record) + "\n" for record in kept))
    self.file = open(path, "a", buffering=1)
    self.events = EventFile(self.mirror.local / EVENTS, purge_step=step + 1 if step else None)

  def write(self, step: int, values: dict[str, float]) -> None:
    self.file.write(json_text.dumps({"step": step, **values}) + "\n")
    for name, value in values.items():
      if math.isfinite(value):
        self.events.scalar(name, value, step)
    if self.tracker is not None:
      self.tracker.write(step, values)
    if self.mirror.due():
      self.upload()

  def upload(self) -> None:
    """To where the run folder is, if it is not on a disk here."""
    if self.mirror.remote:
      self.events.flush()
      self.mirror.upload()

  def close(self) -> None:
    self.file.close()
    self.events.close()
    if self.tracker is not None:
      self.tracker.close()
    plot(self.mirror.local)
    self.mirror.close()


def plot(workdir) -> None:
  """curves.png: training and evaluation loss, gradient norm and learning rate over steps."""
  data = picture(read(workdir))
  if data:
    (folder_path(workdir) / CURVES).write_bytes(data)


def picture(records: list[dict]) -> bytes:
  """The curves of a run as a PNG; nothing where no number is written."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  evals = sorted(
    {k for r in records for k in r if k.startswith("eval/") and ("loss" in k or "perplexity" in k)}
  )
  panels = [
    ["loss"] + [k for k in evals if "loss" in k],
    [k for k in evals if "perplexity" in k],
    ["grad_norm"],
    ["learning_rate"],
  ]
  panels = [[k for k in names if any(_number(r.get(k)) for r in records)] for names in panels]
  panels = [names for names in panels if names]
  if not panels:
    return b""
  figure = Figure(figsize=(6, 2.4 * len(panels)), layout="constrained")
  FigureCanvasAgg(figure)
  for i, names in enumerate(panels):
    axes = figure.add_subplot(len(panels), 1, i + 1)
    for name in names:
      points = [(r["step"], r[name]) for r in records if _number(r.get(name))]
      axes.plot(*zip(*points), marker="." if len(points) < 40 else None, linewidth=1.2, label=name)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.spines[["top", "right"]].set_visible(False)
  axes.set_xlabel("step")
  file = io.BytesIO()
  figure.savefig(file, dpi=130, format="png")
  return file.getvalue()


def _number(value) -> bool:
  return isinstance(value, (int, float)) and math.isfinite(value)
