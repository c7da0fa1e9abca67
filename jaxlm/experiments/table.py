"""What a table declares: rows, columns, scales, the paper's numbers with their place, and the claim
to reproduce.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlm.config import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Number:
  """A published number.

  `size` is the model size it was measured at, one of the `paper` scale's sizes.
  """

  value: float
  source: str
  size: str = ""
  remembered: bool = (
    False  # from memory of the literature, not looked up: printed with a question mark
  )


def paper(value: float, source: str, *, size: str = "") -> Number:
  """A number read in the paper, with its place there."""
  return Number(value, source, size)


def from_memory(value: float, source: str, *, size: str = "") -> Number:
  """A number that nobody looked up; marked wherever it is printed."""
  return Number(value, source, size, remembered=True)


@dataclasses.dataclass(frozen=True)
class Row:
  """One line: a configuration to train, or another row's checkpoint to evaluate differently.

  config: path of a configuration file, from the repository's root. overrides: dotted key -> value,
  on top of the scale's; a mapping replaces the whole subtree. Values may depend on the scale: a
  function of the configuration so far.
  evaluate_from: name of a row whose trained parameters this row evaluates; nothing is trained then,
  and `overrides_at(multiple)` gives the overrides of an evaluation at `multiple` times the training
  length.
  begins_from: name of a row whose trained parameters this row's training begins with
  (`train.init_from`): that row is trained first.
  settings: plain values that the measure finds in `Trained.settings`: which reading of a checkpoint
  this row is. A row with neither config nor evaluate_from trains nothing and reads no checkpoint; its
  settings, behind the scale's and the size's overrides and with the seed, are `Trained.config`.
  """

  name: str
  config: str = ""
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  label: str = ""
  evaluate_from: str = ""
  overrides_at: Callable[[float], Mapping[str, Any]] | None = None
  begins_from: str = ""
  settings: Mapping[str, Any] | None = None

  def __post_init__(self):
    if bool(self.config) == bool(self.evaluate_from) and not self.computes:
      raise ConfigError(
        f"row {self.name!r} needs either a config to train, or evaluate_from, a row whose checkpoint it "
        f"evaluates, or settings to compute with"
      )
    if self.begins_from and not self.config:
      raise ConfigError(
        f"row {self.name!r} trains nothing, so it cannot begin from {self.begins_from!r}"
      )

  @property
  def computes(self) -> bool:
    """Whether the row is its settings alone."""
    return self.settings is not None and not self.config and not self.evaluate_from


@dataclasses.dataclass(frozen=True)
class Column:
  """title as printed; key of a measured number; digits after the point."""

  title: str
  key: str
  digits: int = 2


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large the runs are. note: one line that says so, printed with every row's number.

  config: configuration file that replaces the rows'. configs: row -> the same, for that row alone.
  sizes: name -> overrides, when the table has several model sizes at this scale. num_seeds: default
  number of seeds.
  """

  note: str
  config: str = ""
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  sizes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=lambda: {"": {}})
  num_seeds: int = 1
  configs: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Measured(NamedTuple):
  """What a trained row gave. Keys of `numbers` are what columns ask for; a key in `notes` says why
  one is absent.
  """

  numbers: dict[str, float]
  notes: dict[str, str]
  curves: dict[str, list[float]]


class Trained(NamedTuple):
  """A finished training run as a measure sees it. config: the resolved plain mapping; of a row that
  only computes, its settings and the seed, and params is None. settings: the row's own."""

  config: dict
  params: Any
  workdir: str
  settings: Mapping[str, Any] = {}


def by_step(config: Mapping) -> int:
  """Training steps between two entries of a curve of logged metrics."""
  return config["train"]["log_every"]


@dataclasses.dataclass(frozen=True)
class Figure:
  """Lines of one measured curve, one per row, x = index of the entry, from 1, times `spacing` (of
  the resolved configuration; `by_step` for what is logged in training). marks: x -> label, vertical
  lines.

  references: other measured curves, key -> label, drawn once in black: what the first drawn row
  measured of them.
  ticks: labels of the entries where they are few and not 1, 2, …
  """

  curve: str
  title: str
  x_label: str
  y_label: str
  smooth: int = 1  # running mean over so many entries; the caption says so
  marks: Callable[[dict], Mapping[float, str]] | None = None  # of the resolved configuration
  rows: Sequence[str] = ()  # () draws all
  references: Mapping[str, str] = dataclasses.field(default_factory=dict)
  ticks: Sequence[str] = ()
  spacing: Callable[[dict], float] = lambda config: 1


class Missing(KeyError):
  """A claim asked for a number that was not measured."""


class Means(dict):
  """(row, column title) -> mean over seeds; a claim's view of one size of the table."""

  def __missing__(self, key):
    raise Missing(key)


@dataclasses.dataclass(frozen=True)
class Table:
  """measure: (Trained, overrides_at) -> Measured, after training; overrides_at(multiple) as in Row.

  claims: what the paper asserts, sentence -> function of `Means`; judged at every scale and size,
  seed by seed (`jaxlm.experiments.verdict`). It returns a margin (a float, positive where the claim
  holds), or a bool, or `Exact`; or (one of them, the figures that say so), or (None, why the rows
  cannot be compared).
  runs: name of the work folder, for tables that measure the same trained rows; default the table's
  own.
  """

  name: str
  title: str
  rows: Sequence[Row]
  columns: Sequence[Column]
  scales: Mapping[str, Scale]
  measure: Callable[[Trained, Callable[[float], Mapping]], Measured]
  published: Mapping[tuple[str, str], Number | Sequence[Number]] = dataclasses.field(
    default_factory=dict
  )
  claims: Mapping[str, Callable[[Means], Any]] = dataclasses.field(default_factory=dict)
  figure: Figure | None = None
  source: str = ""  # where the paper's numbers come from, printed under the table
  runs: str = ""

  @property
  def result_file(self) -> str:
    """Of a finished row, in its folder."""
    return f"measured-{self.name}.json" if self.runs else "measured.json"

  def __post_init__(self):
    names = [row.name for row in self.rows]
    titles = [column.title for column in self.columns]
    for name in names:
      if names.count(name) > 1:
        raise ConfigError(f"table {self.name}: two rows are named {name!r}")
    for row in self.rows:
      if row.evaluate_from and row.evaluate_from not in [r.name for r in self.rows if r.config]:
        raise ConfigError(
          f"table {self.name}: row {row.name!r} evaluates {row.evaluate_from!r}, which no row trains"
        )
      self.before(row)
    for label, scale in self.scales.items():
      for name in scale.configs:
        if name not in [r.name for r in self.rows if r.config]:
          raise ConfigError(
            f"table {self.name}: scale {label!r} has a configuration for {name!r}, which no row trains"
          )
    for name, title in self.published:
      if name not in names or title not in titles:
        raise ConfigError(
          f"table {self.name}: published number for ({name!r}, {title!r}), which is not in the table"
        )

  def before(self, row: Row) -> list[Row]:
    """The rows that must be trained before this one, first things first."""
    found, at = [], row
    while name := at.evaluate_from or at.begins_from:
      trained = [r for r in self.rows if r.name == name and r.config]
      if not trained:
        raise ConfigError(
          f"table {self.name}: row {at.name!r} begins from {name!r}, which no row trains"
        )
      [at] = trained
      if at == row or at in found:
        raise ConfigError(f"table {self.name}: row {row.name!r} begins from itself, by {name!r}")
      found.insert(0, at)
    return found

  def row(self, name: str) -> Row:
    for row in self.rows:
      if row.name == name:
        return row
    raise ConfigError(
      f"table {self.name} has no row {name!r}; {nearest(name, [r.name for r in self.rows])}"
    )

  def numbers(self, row: str, title: str) -> tuple[Number, ...]:
    """The published numbers of a cell, () where the paper has none."""
    found = self.published.get((row, title), ())
    return (found,) if isinstance(found, Number) else tuple(found)

  def main(self, argv: Sequence[str] | None = None) -> int:
    """The table's command line; see `jaxlm table --help`."""
    from jaxlm.experiments.command import run_table

    return run_table(self, argv)
