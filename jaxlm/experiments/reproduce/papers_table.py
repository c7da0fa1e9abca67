"""The table of all papers, experiments/README.md: its cells of verdicts and minutes, from the tables' JSON
and the queue.

  | paper | claim | evidence | <!-- verdict lact -->smoke: 3 of 5 shown<!-- end --> | <!-- minutes lact -->12<!-- end --> |

The other cells are written by hand. A paper is named by its folder, or, where several papers share one, by
its table: decoding/rsd.
"""

import re
from collections.abc import Mapping, Sequence

from jaxlm.config import ConfigError, nearest
from jaxlm.experiments.command import load
from jaxlm.experiments.reproduce import queue

CELL = re.compile(r"(<!-- (verdict|minutes) ([\w/]+) -->).*?(<!-- end -->)")
ORDER = ("shown", "not shown", "contradicted", "not comparable", "not measured")


def fill(text: str, papers: Sequence[Mapping], items: Sequence[queue.Item], root) -> str:
  """The page with every marked cell made anew. papers: of `pages.collect`."""
  by_name = {paper["name"]: paper for paper in papers}
  by_name |= {table["name"]: {"tables": [table]} for paper in papers for table in paper["tables"]}
  cost = minutes(items, root)

  def made(match) -> str:
    begin, kind, name, end = match.groups()
    if name not in by_name:
      raise ConfigError(f"experiments/README.md: {name!r} has no table; {nearest(name, by_name)}")
    return f"{begin}{verdicts(by_name[name]) if kind == 'verdict' else f'{cost[name]:.0f}'}{end}"

  return CELL.sub(made, text)


def verdicts(paper: Mapping) -> str:
  """How many claims have which verdict, by scale; a scale that was not run says so."""
  parts = []
  for scale in ("smoke", "small"):
    found = [
      claim["verdicts"][scale].partition(" (")[0]
      for table in paper["tables"]
      for claim in table["claims"]
    ]
    counts = [f"{found.count(verdict)} {verdict}" for verdict in ORDER if verdict in found]
    parts.append(f"{scale}: {', '.join(counts) if counts else 'not run'}")
  return "; ".join(parts)


def minutes(items: Sequence[queue.Item], root) -> dict[str, float]:
  """{paper or table: minutes of one CPU core for all of its tables at smoke}, every row at every seed."""
  units: dict[tuple, float] = {}
  for item in items:
    table = load(str(root / item.script))
    if "smoke" not in table.scales:
      continue
    number = item.seeds or table.scales["smoke"].num_seeds
    for row in item.rows or [row.name for row in table.rows]:
      units.setdefault((queue.paper(item), item.name, row), item.minutes * number)
  out: dict[str, float] = {}
  for (paper, table, _), cost in units.items():
    for name in (paper, table):
      out[name] = out.get(name, 0.0) + cost
  return out
