"""`jaxlm table FILE --scale …`: runs a table's rows, resumes what was begun, prints ours beside
theirs.
"""

import logging
import pathlib
import sys
from collections.abc import Sequence
from importlib import util

from jaxlm.commands.exits import command
from jaxlm.commands.flags import Parser, whole
from jaxlm.config import ConfigError, nearest
from jaxlm.experiments.table import Table
from jaxlm.paths import expand


@command("jaxlm table")
def main(argv: list[str]) -> int:
  """`jaxlm table`. Exit codes: `jaxlm.commands.exits`; 1 if a row failed."""
  named = scripts()
  words = [a for a in argv if not a.startswith("-")]
  found = next((a for a in words if a.endswith(".py") or a in named), None)
  if found is None:
    _parser("jaxlm table TABLE", ("smoke", "small", "paper")).parse_args(
      [a for a in argv if a in ("-h", "--help")] or ["--scale=smoke"]
    )
    if argv and argv[0] in words:
      raise ConfigError(f"no table {argv[0]!r}; {_tables_like(argv[0], named)}")
    raise ConfigError(
      "no table: name its script, for example experiments/carope/table1.py, or one of `jaxlm list tables`"
    )
  path = expand(found)
  if not pathlib.Path(path).is_file() and (known := found.removeprefix("experiments/")) != found:
    path = str(named.get(known.removesuffix(".py"), path))  # of an installed package
  path = str(named[found]) if found in named else path
  return run_table(load(path), [a for a in argv if a != found])


def scripts() -> dict[str, pathlib.Path]:
  """{'carope/table1': its script} of the package `experiments`, those without a table included."""
  package = util.find_spec("experiments")
  folders = (package.submodule_search_locations or ()) if package else ()
  return {
    f"{file.parent.name}/{file.stem}": file
    for folder in folders
    for file in sorted(pathlib.Path(folder).glob("*/*.py"))
    if file.stem != "__init__"
  }


def _tables_like(name: str, named) -> str:
  """Which tables may have been meant: those of a paper, or the one of nearly this name."""
  paper = name.removeprefix("./").removeprefix("experiments/").strip("/")
  own = [other for other in named if other.partition("/")[0] == paper]
  if own:
    return f"tables of {paper}: {', '.join(own)}"
  said = nearest(paper.removesuffix(".py"), named)
  return said if said.startswith("did") else "`jaxlm list tables` names those that are there"


def load(path: str) -> Table:
  """The TABLE of a script."""
  file = pathlib.Path(path)
  if not file.is_file():
    raise ConfigError(f"no table script {path!r}")
  try:
    module = module_of(file)
  except (SyntaxError, ImportError, NameError) as error:
    raise ConfigError(
      f"table script {path} does not run: {type(error).__name__}: {error}"
    ) from error
  table = getattr(module, "TABLE", None)
  if not isinstance(table, Table):
    raise ConfigError(
      f"{path} declares no TABLE = jaxlm.experiments.Table(...), so it is not a table's script; "
      "`jaxlm list tables` names those that are there"
    )
  return table


def module_of(file: pathlib.Path):
  """The module of a script, run. One that lies in a package imports its neighbours by the package's
  name, from wherever it is run.
  """
  folders = []
  for folder in file.resolve().parents:
    if not (folder / "__init__.py").is_file():
      break
    folders.insert(0, folder)
  for depth in range(len(folders)):
    name = ".".join(folder.name for folder in folders[: depth + 1])
    known = sys.modules.get(name)
    if known is None or str(folders[depth]) not in known.__path__:
      _executed(name, folders[depth] / "__init__.py", [str(folders[depth])])
  return _executed(
    ".".join([*(folder.name for folder in folders), f"jaxlm_table_{file.stem}"]), file
  )


def _executed(name: str, file: pathlib.Path, search: list[str] | None = None):
  spec = util.spec_from_file_location(name, file, submodule_search_locations=search)
  module = util.module_from_spec(spec)
  if search is not None:  # a package, which others import from
    sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


def run_table(table: Table, argv: Sequence[str] | None = None) -> int:
  """What `python experiments/<paper>/<table>.py` does; same arguments and exit codes as
  `jaxlm table`.
  """
  return command("jaxlm table")(lambda argv: _run_table(table, argv))(argv)


def _run_table(table: Table, argv: list[str]) -> int:
  args = _parser(f"{table.name}: {table.title}", tuple(table.scales)).parse_args(argv)
  if args.scale not in table.scales:
    raise ConfigError(
      f"table {table.name} has no scale {args.scale!r}; {nearest(args.scale, table.scales)}"
    )
  rows = [name for given in args.row for name in given.split(",")] or [
    row.name for row in table.rows
  ]
  for name in rows:
    table.row(name)
  num_seeds = table.scales[args.scale].num_seeds if args.seeds is None else args.seeds
  if num_seeds < 1:
    raise ConfigError(f"--seeds={num_seeds}: at least one seed is needed")
  return _run(table, args, rows, range(num_seeds))


def _run(table: Table, args, rows, seeds) -> int:
  from jaxlm.experiments import figure, report, runner

  logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns about what a reader leaves unread
  workdir = pathlib.Path(
    expand(args.workdir) if args.workdir else f"runs/{table.runs or table.name}/{args.scale}"
  )
  made_by = runner.provenance()
  if args.out and made_by["revision"].endswith("+") and not args.draft:
    return _refuse(
      f"--out={args.out}: the files differ from revision {made_by['revision'].rstrip('+')}, so nobody could make this report "
      f"again; commit them first, or give --draft, which marks the report"
    )
  stem = pathlib.Path(expand(args.out) if args.out else workdir / table.name)
  stem.parent.mkdir(
    parents=True, exist_ok=True
  )  # what cannot be written is known before rows are trained
  failed = (
    {}
    if args.report
    else runner.run_rows(table, args.scale, rows=rows, seeds=seeds, workdir=workdir)
  )
  results = runner.results(table, args.scale, workdir)
  written = []
  if table.figure:
    for size in table.scales[args.scale].sizes:
      name = (
        stem.name
        + (f"-{size}" if size and len(table.scales[args.scale].sizes) > 1 else "")
        + ".png"
      )
      written.append(figure.draw(table, results, stem.with_name(name), size=size, scale=args.scale))
  summary = report.summarise(table, args.scale, results, failed, made_by)
  written = report.write(table, summary, stem) + [p for p in written if p]
  report.show(table, summary)
  print("written: " + ", ".join(map(str, written)))
  return 1 if failed else 0


def _parser(prog: str, scales: Sequence[str]) -> Parser:
  parser = Parser(
    prog,
    example="jaxlm table experiments/carope/table1.py --scale smoke",
    epilog=(
      "Finished (row, seed) pairs in the work folder are kept, interrupted ones are resumed. Rows with 'n/a' say why."
    ),
  )
  parser.add_argument("--scale", required=True, help=f"one of: {', '.join(scales)}")
  parser.add_argument(
    "--row", action="append", default=[], help="only this row; may be repeated or comma-separated"
  )
  parser.add_argument(
    "--seeds", type=whole, default=None, help="number of seeds, 0, 1, …; default: the scale's"
  )
  parser.add_argument(
    "--workdir", default=None, help="default: runs/<table, or what it calls its runs>/<scale>"
  )
  parser.add_argument(
    "--out", default=None, help="file stem of the .md, .json and .png; default: in the work folder"
  )
  parser.add_argument(
    "--draft",
    action="store_true",
    help="with --out: write the report although files are not committed; it says so",
  )
  parser.add_argument(
    "--report", action="store_true", help="train nothing: write the table from what is finished"
  )
  return parser


def _refuse(message: str) -> int:
  print(message, file=sys.stderr)
  return 2
