"""`jaxlm reproduce --scale smoke`: every table of every paper, row by row, and then the page that
says what is shown.

What is made, and in which order, is declared in experiments/queue.py.
"""

import importlib.util
import logging
import pathlib
import subprocess
import sys
import time

from jaxlm.commands.exits import command
from jaxlm.commands.flags import Parser, whole
from jaxlm.config import ConfigError
from jaxlm.experiments.command import load
from jaxlm.experiments.reproduce import queue
from jaxlm.paths import expand

ROOT = pathlib.Path(__file__).resolve().parents[3]
QUEUE = "experiments/queue.py"


@command("jaxlm reproduce")
def main(argv: list[str]) -> int:
  """Exit codes: `jaxlm.commands.exits`; 1 if a row failed."""
  args = _parser().parse_args(argv)
  if args.seeds is not None and args.seeds < 1:
    raise ConfigError(f"--seeds={args.seeds}: at least one seed is needed")
  if args.minutes is not None and not args.minutes > 0:
    raise ConfigError(f"--minutes={args.minutes:g}: wanted a number above 0")
  only = [name for given in args.only for name in given.split(",")]
  all_items, all_scripts = declared()
  found = queue.chosen([*all_items, *all_scripts], only)
  items = [each for each in found if isinstance(each, queue.Item)]
  scripts = [each for each in found if isinstance(each, queue.Script)]
  tables = {item.script: load(str(ROOT / item.script)) for item in items}
  if items and not any(args.scale in table.scales for table in tables.values()):
    raise ConfigError(f"--scale={args.scale}: no table that was asked for has this scale")
  items = [item for item in items if args.scale in tables[item.script].scales]
  runs = pathlib.Path(expand(args.runs))
  from jaxlm.experiments.reproduce import pages

  recorded = {
    item: set()
    if args.again
    else pages.recorded(tables[item.script], args.scale, ROOT / item.stem(args.scale))
    for item in items
  }

  def waiting(recorded=recorded):
    return queue.by_value(
      {
        item: queue.left(
          item, tables[item.script], args.scale, runs, args.seeds, recorded.get(item, ())
        )
        for item in items
      }
    )

  if args.list:
    _say_left(waiting(), args.scale)
    _say_recorded(waiting(), waiting({}))
    for each in [*all_items, *all_scripts]:
      if each.needs:
        print(f"left out unless named: {each.name}: {each.needs}")
    return 0
  if not args.no_report:
    pages.require_clean(args.draft)
  failed = {} if args.report else _run(waiting, tables, args, runs)
  if not args.report:
    _run_scripts(scripts)
  _say_left(waiting(), args.scale)
  _say_recorded(waiting(), waiting({}))
  if not args.no_report:
    written = pages.write(
      items if only else all_items,
      runs,
      args.scale,
      into=expand(args.into),
      declared=all_items,
    )
    print("written: " + ", ".join(map(str, written)))
  return 1 if failed else 0


def declared() -> tuple[list[queue.Item], list[queue.Script]]:
  """ITEMS and SCRIPTS of experiments/queue.py."""
  spec = importlib.util.spec_from_file_location("jaxlm_queue", ROOT / QUEUE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.ITEMS, module.SCRIPTS


def _run(waiting, tables, args, runs) -> dict:
  """Runs unit by unit. A unit that failed is not tried again by the same command."""
  from jaxlm.experiments import runner

  logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns about what a reader leaves unread
  start, failed = time.time(), {}
  while True:
    ahead = [
      unit
      for _, units in waiting()
      for unit in units
      if (unit.item.script, unit.row, unit.seed) not in failed
    ]
    if not ahead:
      return failed
    if args.minutes is not None and time.time() - start > 60 * args.minutes:
      print(f"{args.minutes:g} minutes are over; the same command continues")
      return failed
    unit = ahead[0]
    table = tables[unit.item.script]
    minutes = sum(each.item.minutes for each in ahead)
    estimate = f", about {_time(minutes)} of one core" if args.scale == "smoke" else ""
    print(
      f"{unit.item.name}, {unit.row}, seed {unit.seed}: {len(ahead)} rows are left{estimate}",
      flush=True,
    )
    found = runner.run_rows(
      table,
      args.scale,
      rows=[unit.row],
      seeds=[unit.seed],
      workdir=queue.workdir(runs, table, args.scale),
    )
    if found:
      failed[unit.item.script, unit.row, unit.seed] = found


def _run_scripts(scripts) -> None:
  for script in scripts:
    missing = [folder for folder in script.reads if not (ROOT / folder).exists()]
    if missing:
      print(f"{script.name}: left out, {missing[0]} is not there")
    if missing or (ROOT / script.output).exists():
      continue
    print(f"{script.name}: {script.command}", flush=True)
    subprocess.run([sys.executable, *script.command.split()[1:]], cwd=ROOT, check=False)


def _say_left(waiting, scale: str) -> None:
  """Estimates are known of scale smoke only."""

  def about(minutes):
    return f", about {_time(minutes)} of one core" if scale == "smoke" else ""

  total = 0.0
  if waiting:
    print(
      "the most valuable per minute first; value: 1 is a detail, 5 decides whether the paper's claim shows"
    )
  for item, units in waiting:
    minutes = item.minutes * len(units)
    total += minutes
    rows, seeds = len({unit.row for unit in units}), len({unit.seed for unit in units})
    print(
      f"{item.name:28} {len(units):4} left ({rows} rows, {seeds} seeds){about(minutes)}, value {item.value:g}"
    )
  print(
    f"left at scale {scale}: {sum(len(units) for _, units in waiting)} rows x seeds{about(total)}"
  )


def _say_recorded(waiting, without_record) -> None:
  """How many results are committed and therefore not left."""
  number = sum(len(units) for _, units in without_record) - sum(len(units) for _, units in waiting)
  if number:
    print(
      f"not counted: {number} rows x seeds whose results are in experiments/*/results; --again runs them too"
    )


def _time(minutes: float) -> str:
  return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _parser() -> Parser:
  parser = Parser(
    "jaxlm reproduce",
    example="jaxlm reproduce --scale smoke --list",
    epilog="Finished rows are kept and interrupted ones resumed. Reports are refused from files that are not committed.",
  )
  parser.add_argument("--scale", required=True, help="smoke, small or paper")
  parser.add_argument(
    "--only",
    action="append",
    default=[],
    help="a paper (lact) or a table (lact/figure5); may be repeated or comma-separated",
  )
  parser.add_argument("--seeds", type=whole, default=None, help="default: the item's")
  parser.add_argument("--runs", default="runs", help="folder of the work folders; default runs")
  parser.add_argument(
    "--minutes", type=float, default=None, help="begin no further row after so many minutes"
  )
  parser.add_argument(
    "--again",
    action="store_true",
    help="also run rows whose results are committed in experiments/*/results",
  )
  parser.add_argument("--list", action="store_true", help="print what is left; run nothing")
  parser.add_argument(
    "--report", action="store_true", help="run nothing; write the reports of what is finished"
  )
  parser.add_argument("--no_report", action="store_true", help="run rows; write no report")
  parser.add_argument(
    "--draft", action="store_true", help="write reports although files are not committed"
  )
  parser.add_argument(
    "--into", default=str(ROOT), help="where the reports go; default the repository"
  )
  return parser
