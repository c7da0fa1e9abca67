"""`data.kind = "mixture"`: rows of several sources, with shares that may change from step to step.

Global batch n is a pure function of (seed, n): how many of its rows come from each source follows
from the shares alone, and which places they take is drawn from the seed and n. Row r of a source's
own stream is read once, in order. A saved position is the number of batches read.
"""

import collections
import dataclasses
import threading
from collections.abc import Sequence
from typing import Annotated

import grain
import numpy as np

from jaxlm.config import ConfigError, check_seed, checked
from jaxlm.data import DATA
from jaxlm.data.base import DataConfig
from jaxlm.data.errors import DataError
from jaxlm.data.pipeline import Batches, check_sizes, stacked, ungrouped
from jaxlm.ranges import Natural, NonNegative

#: Shares are whole numbers of 1 / UNIT of a row, so that their sums are exact on every machine.
UNIT = 2**20
#: Batches whose counts are kept: more than are read ahead of one another.
KEPT = 256


@dataclasses.dataclass(frozen=True)
@checked
class Source:
  """data: a data section of its own; all sources have the same batch_size, seq_len and form.

  weights: ((step, weight), ...), steps growing: the weight in between is on a straight line, before
  the first and after the last it stays. A source's share is its weight over the sum of all.
  """

  data: Annotated[object, DATA]
  weights: tuple[tuple[Natural, NonNegative], ...] = ((0, 1.0),)

  def __post_init__(self):
    steps = [step for step, _ in self.weights]
    if not steps or steps != sorted(set(steps)):
      raise ConfigError(
        f"weights = {self.weights}: wanted ((step, weight), ...) with growing steps, at least one"
      )

  def weight(self, step: int) -> float:
    """The weight at a step, on the straight line between the steps that are named."""
    before = after = self.weights[0]
    for after in self.weights:
      if after[0] >= step:
        break
      before = after
    (a, x), (b, y) = before, after
    return y if a >= b or step >= b else x if step <= a else x + (y - x) * (step - a) / (b - a)


@dataclasses.dataclass(frozen=True)
@checked
class MixtureData(DataConfig):
  """sources: at least two. Training mixes them for ever; evaluation reads each of them once, one
  after the other, whatever the weights. Tokens and special tokens are those of the first source.
  """

  sources: tuple[Source, ...]

  def __post_init__(self):
    if len(self.sources) < 2:
      raise ConfigError(f"data.sources names {len(self.sources)} source; a mixture needs two")
    for name in ("batch_size", "seq_len", "batch_form", "rows_per_group", "constraint"):
      found = [getattr(source.data, name) for source in self.sources]
      if len(set(found)) > 1:
        raise ConfigError(
          f"the sources of a mixture have different {name} ({', '.join(map(str, found))}); give all "
          f"the same"
        )
    for step in sorted({step for source in self.sources for step, _ in source.weights}):
      if not any(source.weight(step) for source in self.sources):
        raise ConfigError(f"at step {step} no source of the mixture has a weight above 0")

  @property
  def first(self) -> DataConfig:
    return self.sources[0].data

  @property
  def batch_size(self) -> int:
    return self.first.batch_size

  @property
  def seq_len(self) -> int:
    return self.first.seq_len

  @property
  def batch_form(self) -> str:
    return self.first.batch_form

  @property
  def rows_per_group(self) -> int:
    return self.first.rows_per_group

  @property
  def constraint(self) -> bool:
    return self.first.constraint

  @property
  def vocab_size(self) -> int:
    return max(source.data.vocab_size for source in self.sources)

  @property
  def special_tokens(self):
    return self.first.special_tokens

  @property
  def batch_fields(self):
    return self.first.batch_fields

  @property
  def has_text(self) -> bool:
    return self.first.has_text

  def load_tokenizer(self):
    return self.first.load_tokenizer()

  def resized(self, seq_len: int, batch_size: int) -> "MixtureData":
    parts = [
      dataclasses.replace(source, data=source.data.resized(seq_len, batch_size))
      for source in self.sources
    ]
    return dataclasses.replace(self, sources=tuple(parts))

  def check(self, cfg) -> None:
    for source in self.sources:
      source.data.check(dataclasses.replace(cfg, data=source.data))

  def check_vocabulary(self) -> None:
    """ConfigError where the same ids stand for other tokens."""
    for i, source in enumerate(self.sources):
      if source.data.special_tokens != self.special_tokens:
        raise ConfigError(
          f"data.sources[{i}] has other special tokens than data.sources[0]; mix data of one vocabulary"
        )
    names = [s.data.load_tokenizer().fingerprint for s in self.sources if s.data.has_text]
    if len(set(names)) > 1:
      raise ConfigError(
        f"the sources of a mixture read text with different tokenizers ({', '.join(names)}); give all "
        f"the same"
      )

  def build(
    self, split, *, seed, process_index=0, process_count=1, repeat=True
  ) -> grain.IterDataset:
    check_seed(seed)
    check_sizes(self.batch_size, process_index, process_count, self.rows_per_group)
    self.check_vocabulary()
    parts = [source.data.build(split, seed=seed, repeat=repeat) for source in self.sources]
    for i, part in enumerate(parts):
      if not isinstance(part, Batches):
        raise DataError(f"data.sources[{i}] cannot be mixed: its rows have no index")
    streams = [part.stream for part in parts]
    _check_fields([stream[0] for stream in streams])
    stamp = {"batch_size": self.batch_size, "seed": seed}
    stamp |= {f"data.sources[{i}]": part.stamp["data"] for i, part in enumerate(parts)}
    stamp["weights"] = str([source.weights for source in self.sources])
    groups = self.batch_size // self.rows_per_group
    plan = Plan(self.sources, groups, seed) if repeat else None
    rows = Mixed(streams, plan, groups, process_index, process_count, self.rows_per_group)
    return Batches(grain.MapDataset.source(rows), stamp, num_workers=0)


class Plan:
  """Which rows global batch n has. Axes: K sources.

  Shares that are no whole number of rows are carried over: after any number of batches every source
  has had its exact share of the rows, to less than one row per source. Batch n is reached from
  batch n - 1, about ten microseconds each.
  """

  def __init__(self, sources: Sequence[Source], rows: int, seed: int):
    self.sources, self.rows, self.seed = sources, rows, seed
    self._lock = threading.Lock()  # batches are read by several threads
    self._begin()

  def __getstate__(self):
    return {"sources": self.sources, "rows": self.rows, "seed": self.seed}

  def __setstate__(self, state):
    self.__init__(**state)

  def _begin(self) -> None:
    self._step, self._recent = 0, collections.OrderedDict()
    self._owed = [0] * len(self.sources)  # in 1 / UNIT of a row
    self._read = [0] * len(self.sources)

  def counts(self, step: int) -> tuple[list[int], list[int]]:
    """(rows of each source in batch `step`, rows of each in the batches before it)."""
    with self._lock:
      if step < self._step and step not in self._recent:
        self._begin()
      while self._step <= step:
        rows, self._owed = self._next()
        self._recent[self._step] = rows, self._read
        self._read = [a + b for a, b in zip(self._read, rows)]
        self._step += 1
        if len(self._recent) > KEPT:
          self._recent.popitem(last=False)
      return self._recent[step]

  def _next(self) -> tuple[list[int], list[int]]:
    """(rows of each source in the next batch, what each is owed after it)."""
    weights = [source.weight(self._step) for source in self.sources]
    shares = whole_shares(weights, self.rows * UNIT)
    owed = [before + share for before, share in zip(self._owed, shares)]
    rows = [max(units // UNIT, 0) for units in owed]

    def rest(k):  # the first of equal ones
      return owed[k] - rows[k] * UNIT, -k

    while sum(rows) < self.rows:  # the largest remainders fill the batch up
      rows[max(range(len(rows)), key=rest)] += 1
    while sum(rows) > self.rows:  # a source that was ahead leaves one row too many
      rows[min((k for k in range(len(rows)) if rows[k]), key=rest)] -= 1
    return rows, [units - n * UNIT for units, n in zip(owed, rows)]

  def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(source, row of its stream) of each row of the batch, int64 (rows,)."""
    rows, read = self.counts(step)
    source = np.repeat(np.arange(len(rows)), rows)
    row = np.concatenate([before + np.arange(n) for before, n in zip(read, rows)])
    order = np.random.default_rng([self.seed, step, 0x6D6978]).permutation(self.rows)
    return source[order], row[order]


class Mixed:
  """The batches of one host by index. plan None: the streams one after the other, once."""

  def __init__(self, streams, plan: Plan | None, groups: int, index: int, count: int, size: int):
    self.streams, self.plan, self.groups = streams, plan, groups
    self.index, self.count, self.size = index, count, size
    self.ends = np.cumsum([len(stream) for stream in streams])

  def __len__(self) -> int:
    return 2**62 if self.plan is not None else -(-int(self.ends[-1]) // self.groups)

  def __getitem__(self, step: int) -> dict:
    if self.plan is not None:
      source, row = self.plan.batch(int(step))
    else:
      at = np.arange(int(step) * self.groups, (int(step) + 1) * self.groups)
      source = np.searchsorted(self.ends, at, side="right")
      row = at - np.concatenate([[0], self.ends])[source]
    mine = slice(self.index, None, self.count)
    batch = stacked(
      [self.streams[int(k)][int(i)] for k, i in zip(source[mine], row[mine], strict=True)]
    )
    return ungrouped(batch) if self.size > 1 else batch


def whole_shares(weights: Sequence[float], total: int) -> list[int]:
  """Shares of `total` in proportion to the weights, whole numbers that add up to it."""
  whole, ends, so_far = sum(weights), [0], 0.0
  for weight in weights[:-1]:
    so_far += weight
    ends.append(round(so_far / whole * total))
  return [b - a for a, b in zip(ends, [*ends[1:], total])]


def _check_fields(rows: list[dict]) -> None:
  """DataError unless the rows have the same fields, shapes and types."""
  first = {name: (x.shape, str(x.dtype)) for name, x in rows[0].items()}
  for i, row in enumerate(rows[1:], 1):
    other = {name: (x.shape, str(x.dtype)) for name, x in row.items()}
    wrong = sorted(name for name in {*first, *other} if first.get(name) != other.get(name))
    if wrong:
      raise DataError(
        f"data.sources[{i}] has field {wrong[0]} {other.get(wrong[0], 'not at all')}, data.sources[0] "
        f"{first.get(wrong[0], 'not at all')}; mix data whose rows have the same fields"
      )
