"""`jaxlm data list | info NAME | prepare NAME`: corpora made on this machine from package managers.
`jaxlm data tokenize` and `check`: stores of tokens for several hosts (`jaxlm.data.tokenize`)."""

import json
import os
import sys

from jaxlm.commands.exits import FAILED, FULL, INTERRUPTED, command, explain, refuse
from jaxlm.commands.flags import CONFIG, Parser, parse_flags, whole
from jaxlm.commands.tables import print_table
from jaxlm.config import ConfigError
from jaxlm.data.errors import DataError
from jaxlm.data.folders import data_dir

USAGE = """Corpora by name, fetched with pip, npm and apt (never by address), split by document hash.

  jaxlm data list
  jaxlm data prepare prose-small            then: --config.data.source=prepared:prose-small
  jaxlm data info prose-small
  jaxlm data tokenize --config=configs/carope/paper_small.py --out=gs://bucket/tokens/fineweb
                                            then: --config.data.source=store:gs://bucket/tokens/fineweb
  jaxlm data check gs://bucket/tokens/fineweb

Stopping is safe at any time: the same command goes on. Files go to $JAXLM_DATA, else ~/.cache/jaxlm."""


@command("jaxlm data")
def main(argv: list[str]) -> int:
  spec, overrides = None, {}
  if argv[:1] == ["tokenize"]:  # the others need no JAX
    spec, overrides, argv = parse_flags(argv)
  parser = Parser("jaxlm data", description=USAGE, example="jaxlm data list")
  actions = parser.add_subparsers(
    dest="action",
    required=True,
    metavar="list | info | prepare | tokenize | check",
    parser_class=Parser,
  )
  _tokenize_flags(actions)
  check = actions.add_parser(
    "check", help="compare a store's files with their checksums", example="jaxlm data check FOLDER"
  )
  check.add_argument("store", help="the folder or address of a store of tokens")
  for action, what in (
    ("list", "all corpora, and which are here"),
    ("info", "what a corpus holds"),
    ("prepare", "make a corpus, or go on making it"),
  ):
    sub = actions.add_parser(
      action, help=what, example=f"jaxlm data {action}" + " prose-small" * (action != "list")
    )
    sub.add_argument("--data_dir", default=None, help="default: $JAXLM_DATA, else ~/.cache/jaxlm")
    if action != "list":
      sub.add_argument(
        "names" if action == "prepare" else "name",
        nargs="+" if action == "prepare" else None,
        metavar="NAME",
        help="one of `jaxlm data list`",
      )
    if action == "prepare":
      sub.add_argument(
        "--force", action="store_true", help="throw away what is there and begin anew"
      )
      sub.add_argument("--quiet", action="store_true", help="no progress bar")
  args = parser.parse_args(argv)
  folder = data_dir(None if args.action in ("tokenize", "check") else args.data_dir)
  try:
    if args.action == "tokenize":
      _tokenize(spec, overrides, args)
    elif args.action == "check":
      return _check(args.store)
    elif args.action == "list":
      _list(folder)
    elif args.action == "info":
      _info(folder, args.name)
    else:
      for name in args.names:
        _prepare(folder, name, args.force, args.quiet)
  except BrokenPipeError:
    raise
  except OSError as error:
    if error.errno in FULL:
      return refuse(
        "jaxlm data",
        f"{explain(error)}. What is written so far stays good; --data_dir names another folder",
        FAILED,
      )
    raise
  except KeyboardInterrupt:
    return refuse("jaxlm data", "stopped; the same command goes on from here", INTERRUPTED)
  return 0


def _tokenize_flags(actions) -> None:
  sub = actions.add_parser(
    "tokenize",
    help="tokenise a configuration's corpus once, for all hosts",
    example="jaxlm data tokenize --config=FILE.py --out=gs://bucket/tokens",
    others=CONFIG,
  )
  sub.add_argument("--out", required=True, help="the store: a folder, or an address (gs://..)")
  sub.add_argument("--shards", type=whole, default=16, help="of the train split; default 16")
  sub.add_argument(
    "--processes", type=whole, default=os.cpu_count() or 1, help="on this host; default: its cores"
  )
  sub.add_argument(
    "--at_once",
    type=whole,
    default=8,
    help="shards that a process makes in one pass over the corpus; what is lost when it is stopped",
  )
  sub.add_argument("--hosts", type=whole, default=None, help="hosts that run this command together")
  sub.add_argument("--host", type=whole, default=None, help="which of them this is: 0 to hosts - 1")
  sub.add_argument("--quiet", action="store_true", help="no progress")


def _tokenize(spec, overrides, args) -> None:
  from jaxlm.data.text import TextData
  from jaxlm.data.tokenize import Job, tokenize
  from jaxlm.training.config import configured

  if spec is None:
    raise ConfigError("no configuration; give --config=configs/carope/tiny.py, say")
  data = configured(spec, overrides).data
  if not isinstance(data, TextData):
    raise ConfigError(f"{spec}: only data.kind = 'text' has tokens to keep")
  hosts, host = (
    int(os.environ.get(name, default)) if given is None else given
    for given, name, default in (
      (args.hosts, "JAX_NUM_PROCESSES", 1),
      (args.host, "JAX_PROCESS_ID", 0),
    )
  )
  if hosts > 1 and args.host is None and "JAX_PROCESS_ID" not in os.environ:
    raise ConfigError(
      f"{hosts} hosts run this command together: say which of them this is, --host=0 to --host={hosts - 1}"
    )
  for name, value in (("shards", args.shards), ("processes", args.processes), ("hosts", hosts)):
    if value < 1:
      raise ConfigError(f"--{name}={value}: wanted 1 or more")
  if not 0 <= host < hosts:
    raise ConfigError(f"--host={host} is not below --hosts={hosts}")

  def say(line):
    if not args.quiet:
      print(line, file=sys.stderr, flush=True)

  job = Job(data, args.out, args.shards, args.processes, host, hosts, max(1, args.at_once))
  for line in tokenize(job, say):
    print(line)


def _check(store: str) -> int:
  from jaxlm.data.shards import damaged_files

  found = list(damaged_files(store.removeprefix("store:")))
  for path, what in found:
    print(f"{path} {what}")
  if found:
    return refuse(
      "jaxlm data",
      f"{len(found)} files of {store} are damaged; remove them with the .json of their shard and {store}/index.json, "
      f"and run the same `jaxlm data tokenize` command again",
      FAILED,
    )
  print(f"{store}: every file has its checksum")
  return 0


def _manifest(folder, name: str) -> dict | None:
  path = folder / "prepared" / name / "manifest.json"
  if not path.is_file():
    return None
  try:
    manifest = json.loads(path.read_text())
    if all(entry["bytes"] >= 0 for entry in manifest["splits"].values()):
      return manifest
  except (ValueError, KeyError, TypeError, AttributeError):
    pass
  raise DataError(
    f"{path} is damaged; make the corpus again with `jaxlm data prepare {name} --force`"
  )


def _list(folder) -> None:
  from jaxlm.data.prepare.catalog import CATALOG

  rows = []
  for name, corpus in CATALOG.items():
    try:
      manifest = _manifest(folder, name)
      size = sum(entry["bytes"] for entry in manifest["splits"].values()) if manifest else 0
      here = (f"{size / 1e6:,.1f} MB" if size else "yes") if manifest else ""
    except DataError:
      here = "damaged"
    rows.append([name, corpus.what, here])
  print_table(
    ("name", "what", "here"), rows, title=f"corpora ({folder})", words=("what",), box=False
  )


def _info(folder, name: str) -> None:
  from jaxlm.data.prepare.catalog import corpus

  recipe, manifest = corpus(name), _manifest(folder, name)
  print(f"{name}: {recipe.what}")
  if recipe.note:
    print(f"note: {recipe.note}")
  for part in recipe.parts:
    print(f"  {part.package}  {part.files}  ({part.licence})")
  if manifest is None:
    print(f"not in {folder}; make it with `jaxlm data prepare {name}`")
    return
  for split, entry in manifest["splits"].items():
    dropped = f", {entry['dropped']} dropped: they stand in train" if entry["dropped"] else ""
    print(
      f"  {split:<10} {entry['documents']:>9,} documents {entry['bytes']:>13,} bytes  {entry['sha256'][:16]}"
      f"{dropped}"
    )
  for file, entry in manifest.get("files", {}).items():
    print(f"  {file:<20} {entry['bytes']:>11,} bytes  {entry['sha256'][:16]}")


def _prepare(folder, name: str, force: bool, quiet: bool) -> None:
  from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

  from jaxlm.data.prepare.catalog import corpus
  from jaxlm.data.prepare.checksums import complaints
  from jaxlm.data.prepare.costs import forecast
  from jaxlm.data.prepare.write import prepare

  recipe = corpus(name)
  if force or not (folder / "prepared" / name / "manifest.json").is_file():
    print(forecast(name, recipe), file=sys.stderr)
  columns = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.completed}/{task.total}"),
    TimeElapsedColumn(),
  )
  with Progress(*columns, disable=quiet or not sys.stderr.isatty()) as bar:
    task = bar.add_task(name)
    manifest = prepare(
      name,
      recipe,
      folder,
      lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
      force=force,
    )
  for line in complaints(name, manifest):
    print(f"warning: {line}", file=sys.stderr)
  _info(folder, name)
