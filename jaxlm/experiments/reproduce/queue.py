"""The order in which tables and figures are made: what a reader learns per minute comes first.

An item is a table, or the rows of it that decide its claims, with an estimate of what it is worth and
of what a row costs. A unit is one row at one seed; what is finished in the work folder is not left.
"""

import dataclasses
import pathlib
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from jaxlm.config import ConfigError, nearest
from jaxlm.experiments import runner
from jaxlm.experiments.table import Table


@dataclasses.dataclass(frozen=True)
class Item:
  """script: of the table, from the repository's root. rows: () are all of them.

  minutes: of one CPU core, for a row of one seed at scale `smoke`. value: what a reader learns from
  the whole item, 1 (a detail) to 5 (whether the paper's claim shows). seeds: None is the scale's.
  needs: what cannot be had without asking for it, for example prepared data; the item is then left
  out unless it is named.
  report: file stem of the report in the folder `results` beside the script; default the script's
  own, with the scale behind it.
  """

  script: str
  minutes: float
  value: float
  rows: Sequence[str] = ()
  seeds: int | None = None
  needs: str = ""
  report: str = ""

  @property
  def name(self) -> str:
    """The paper and the script, as in `lact/figure5`."""
    path = pathlib.Path(self.script)
    return f"{path.parent.name}/{path.stem}"

  def stem(self, scale: str) -> pathlib.Path:
    path = pathlib.Path(self.script)
    return path.parent / "results" / (self.report or f"{path.stem}-{{scale}}").format(scale=scale)


@dataclasses.dataclass(frozen=True)
class Script:
  """A figure that is no table: a command, and the file that says it was made. reads: run folders
  that the command asks for, from the repository's root."""

  name: str
  command: str
  output: str
  reads: Sequence[str] = ()
  needs: str = ""


class Unit(NamedTuple):
  """One row at one seed of an item."""

  item: Item
  row: str
  seed: int


def workdir(runs, table: Table, scale: str) -> pathlib.Path:
  """Where the rows of a table are, as `jaxlm table` has it."""
  return pathlib.Path(runs) / (table.runs or table.name) / scale


def chosen(declared: Sequence[Item | Script], only: Sequence[str]) -> list[Item | Script]:
  """What `only` names, by its name or by its paper; all that needs nothing if it is empty."""
  if not only:
    return [each for each in declared if not each.needs]
  known = sorted({each.name for each in declared} | {paper(each) for each in declared})
  for name in only:
    if name not in known:
      said = nearest(name, known)
      raise ConfigError(
        f"--only={name}: no such table or figure; "
        + (said if said.startswith("did") else "`jaxlm list tables` names the tables")
      )
  return [each for each in declared if each.name in only or paper(each) in only]


def paper(each: Item | Script) -> str:
  return each.name.split("/")[0]


def left(
  item: Item,
  table: Table,
  scale: str,
  runs,
  seeds: int | None = None,
  recorded: Container[tuple[str, str, int]] = (),
) -> list[Unit]:
  """The units of an item that are not finished, whole seeds first. recorded: (size, row, seed) that
  need no run, because their results are in the table's JSON."""
  number = seeds or item.seeds or table.scales[scale].num_seeds
  rows = item.rows or [row.name for row in table.rows]
  folder = workdir(runs, table, scale)
  return [
    Unit(item, table.row(row).name, seed)
    for seed in range(number)
    for row in rows
    if any(
      (size, table.row(row).name, seed) not in recorded
      and not (runner.folder(folder, size, row, seed) / table.result_file).exists()
      for size in table.scales[scale].sizes
    )
  ]


def by_value(units_of: Mapping[Item, Sequence[Unit]]) -> list[tuple[Item, list[Unit]]]:
  """Items with something left, the most valuable per minute that is left first. A unit that two
  items have belongs to the one that is declared first."""
  taken, waiting = set(), []
  for item, units in units_of.items():
    mine = [unit for unit in units if (item.script, unit.row, unit.seed) not in taken]
    taken |= {(item.script, unit.row, unit.seed) for unit in mine}
    if mine:
      waiting.append((item, mine))
  return sorted(waiting, key=lambda pair: -pair[0].value / (pair[0].minutes * len(pair[1])))
