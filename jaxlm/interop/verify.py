"""`jaxlm verify DIR...`: our numbers beside the stored ones, one row per golden file.

A golden file is an `.npz` with arrays and a JSON string `config`; `config.system` and `config.kind`
choose the check in `jaxlm.interop.golden.CHECKS`. A row passes when every comparison is within its
tolerance and every stored result was compared or left out with a reason. A result that is not
stored is not compared, and the row says so: a file may hold outputs without gradients.

Exit code: 0 all rows pass, 1 some row fails (a damaged file and an unknown kind are rows), 2
nothing to verify.
"""

import dataclasses
import difflib
import importlib
import math
import pathlib
import sys
import time
import traceback

from jaxlm import json_text
from jaxlm.commands.exits import command
from jaxlm.commands.flags import Parser
from jaxlm.interop.golden import CHECKS
from jaxlm.interop.golden.case import Case, Comparison, DamagedCase, read_config
from jaxlm.paths import expand


@dataclasses.dataclass(frozen=True)
class Row:
  """What became of one file."""

  path: pathlib.Path
  system: str = "?"
  kind: str = "?"
  comparisons: tuple[Comparison, ...] = ()
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  absent: tuple[str, ...] = ()  # results that the file does not hold
  unread: tuple[str, ...] = ()
  message: str = ""  # why it failed, when it is not (only) a number out of tolerance
  trace: str = ""
  seconds: float = 0.0
  passed: bool = False

  def worst(self, measure: str, group: str | None = None) -> float | None:
    """Largest `error` or `ratio` of a group ('outputs', 'gradients'), None if nothing was compared."""
    return max(
      (getattr(c, measure) for c in self.comparisons if group in (None, c.group)), default=None
    )


def find_cases(paths) -> list[tuple[pathlib.Path, str]]:
  """[(file, name to print)] of the .npz files named or found under the folders, sorted, each once."""
  found = {}
  for given in map(pathlib.Path, paths):
    if given.is_dir():
      files = sorted(p for p in given.rglob("*.npz") if p.is_file())
      if not files:
        raise FileNotFoundError(f"no .npz file under {given}: give a folder of golden arrays")
      base = given if len(paths) == 1 else given.parent
    elif given.exists():
      if given.suffix != ".npz":
        raise FileNotFoundError(
          f"{given} is not an .npz file: give golden files or folders that hold them"
        )
      files, base = [given], given.parent
    else:
      raise FileNotFoundError(
        f"{given} does not exist; a clone of the repository has golden arrays in tests/golden"
      )
    for file in files:
      found.setdefault(file.resolve(), (file, str(file.relative_to(base))))
  return list(found.values())


def unknown_kind(system: str, kind: str, checks=CHECKS) -> str | None:
  """None if there is a check, else the sentence that names the nearest one."""
  if (system, kind) in checks:
    return None
  known = [f"{s}/{k}" for s, k in checks]
  close = difflib.get_close_matches(f"{system}/{kind}", known, n=1, cutoff=0.0)
  hint = f"; the nearest is {close[0]!r}" if close else ""
  return f"no check for system {system!r}, kind {kind!r}{hint}"


def verify(path, *, allow_unread: bool = False, checks=CHECKS) -> Row:
  """Runs the check of one file, with full-precision matmuls and 32-bit defaults.

  Never raises for its content.
  """
  path, start = pathlib.Path(path), time.perf_counter()
  try:
    config = read_config(path)
  except DamagedCase as error:
    return Row(path, message=f"damaged: {error}")
  system, kind = str(config["system"]), str(config["kind"])
  message, trace, case = unknown_kind(system, kind, checks), "", None
  if message is None:
    import jax

    try:
      case = Case(path)
      module, name = checks[system, kind].split(":")
      with jax.default_matmul_precision("highest"), jax.enable_x64(False):
        getattr(importlib.import_module(module), name)(case)
      message = ""
    except DamagedCase as error:
      message, trace = f"damaged: {error}", traceback.format_exc()
    except Exception as error:  # a row must not take the others down
      message, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
  if case is None:
    return Row(path, system, kind, message=message, trace=trace)
  unread = tuple(case.unread)
  if not message and not case.comparisons:
    message = "the check compared nothing"
  if not message and unread and not allow_unread:
    some = ", ".join(unread[:3]) + (", ..." if len(unread) > 3 else "")
    message = f"{len(unread)} stored results were never compared: {some}"
  if not message and case.torn:
    message = f"damaged: {case.torn[0]} is not stored, although other gradients are"
  return Row(
    path,
    system,
    kind,
    tuple(case.comparisons),
    dict(case.skipped),
    tuple(case.absent),
    unread,
    message,
    trace,
    time.perf_counter() - start,
    passed=case.passed and not message,
  )


# -- printing
# ----------------------------------------------------------------------------------------------

HEADER = ("outputs", "gradients", "of limit", "verdict", "compared", "skipped")


def number(x: float | None) -> str:
  return "-" if x is None else "inf" if math.isinf(x) else "0" if x == 0 else f"{x:.1e}"


def ratio_text(x: float | None) -> str:
  return "-" if x is None else f"{x:.3f}" if x < 1000 else "> 1000"


def print_row(console, row: Row, name: str, widths, verbose: bool) -> None:
  from rich.markup import escape

  verdict = "[green]pass[/]" if row.passed else "[bold red]FAIL[/]"
  skipped = len(row.skipped) + len(row.unread)
  console.print(
    f"{escape(f'{row.system}/{row.kind}'):<{widths[0]}}  {escape(name):<{widths[1]}}  "
    f"{number(row.worst('error', 'outputs')):>9}  {number(row.worst('error', 'gradients')):>9}  "
    f"{ratio_text(row.worst('ratio')):>8}  {verdict:<4}     {len(row.comparisons):>8}  {skipped:>7}"
  )
  if row.message:
    console.print(f"    [red]{escape(row.message)}[/]")
  if row.absent:
    console.print(f"    [yellow]not stored[/], so not compared: {escape(absent_text(row.absent))}")
  for c in row.comparisons:
    if verbose or not c.passed:
      console.print(
        f"    {'pass' if c.passed else '[red]FAIL[/]'}  error {number(c.error):>8}  "
        f"of limit {ratio_text(c.ratio):>7}  {escape(c.key)}  {escape(c.message)}".rstrip()
      )
  if verbose:
    for key, why in row.skipped.items():
      console.print(f"    [yellow]skip[/]  {escape(key)}: {escape(why)}")
    for key in () if row.trace else row.unread:
      console.print(f"    [yellow]skip[/]  {escape(key)}: no reason given")
    if row.trace:
      console.print(escape(row.trace.rstrip()))


def absent_text(absent) -> str:
  """'gradients; out/loss, out/hidden_0, 2 more'."""
  outputs = [key for key in absent if not key.startswith("grad")]
  some = ", ".join(outputs[:4]) + (f", {len(outputs) - 4} more" if len(outputs) > 4 else "")
  return "; ".join(
    part for part in ("gradients" if len(outputs) < len(absent) else "", some) if part
  )


def as_json(row: Row, name: str) -> dict:
  """JSON form of a row; a number that is not finite becomes null, and `passed` says what it meant."""

  def finite(x):
    return x if x is not None and math.isfinite(x) else None

  return {
    "file": name,
    "system": row.system,
    "kind": row.kind,
    "passed": row.passed,
    "message": row.message,
    "seconds": round(row.seconds, 3),
    "worst": {g: finite(row.worst("error", g)) for g in ("outputs", "gradients")}
    | {"ratio": finite(row.worst("ratio"))},
    "comparisons": [
      {
        "key": c.key,
        "error": finite(c.error),
        "ratio": finite(c.ratio),
        "passed": c.passed,
        "message": c.message,
      }
      for c in row.comparisons
    ],
    "skipped": row.skipped,
    "absent": list(row.absent),
    "unread": list(row.unread),
  }


@command("jaxlm verify", refusals=(FileNotFoundError,))
def main(argv: list[str]) -> int:
  parser = Parser(
    "jaxlm verify",
    description="Compare our numbers with golden arrays (.npz).",
    example="jaxlm verify tests/golden/carope",
  )
  parser.add_argument(
    "paths", nargs="+", metavar="DIR_OR_FILE", help="folders are searched for .npz files"
  )
  parser.add_argument(
    "--verbose", action="store_true", help="a line per array, reasons of skips, tracebacks"
  )
  parser.add_argument(
    "--json", action="store_true", help="the whole report as one JSON document on stdout"
  )
  parser.add_argument(
    "--allow_unread",
    action="store_true",
    help="pass although stored results were neither compared nor skipped with a reason",
  )
  args = parser.parse_args(argv)
  cases = find_cases([expand(path) for path in args.paths])
  if args.json:
    rows = [(verify(path, allow_unread=args.allow_unread), name) for path, name in cases]
    print(
      json_text.dumps(
        {"passed": all(r.passed for r, _ in rows), "rows": [as_json(r, n) for r, n in rows]},
        indent=1,
      )
    )
    return 0 if all(r.passed for r, _ in rows) else 1

  from rich.console import Console

  console = Console(highlight=False, soft_wrap=True)
  kinds = [len(f"{s}/{k}") for s, k in map(_kind_of, (path for path, _ in cases))]
  widths = max([*kinds, len("system/kind")]), max([*(len(name) for _, name in cases), len("file")])
  console.print(
    f"[bold]{'system/kind':<{widths[0]}}  {'file':<{widths[1]}}  {HEADER[0]:>9}  {HEADER[1]:>9}  "
    f"{HEADER[2]:>8}  {HEADER[3]:<7}  {HEADER[4]:>8}  {HEADER[5]:>7}[/]"
  )
  rows = []
  for path, name in cases:
    rows.append(verify(path, allow_unread=args.allow_unread))
    print_row(console, rows[-1], name, widths, args.verbose)
  failed = sum(not row.passed for row in rows)
  compared, skipped = (
    sum(len(r.comparisons) for r in rows),
    sum(len(r.skipped) + len(r.unread) for r in rows),
  )
  console.print(
    f"{len(rows) - failed} of {len(rows)} cases pass; {compared} arrays compared, {skipped} skipped; "
    f"{sum(r.seconds for r in rows):.0f} s"
  )
  return 1 if failed else 0


def _kind_of(path) -> tuple[str, str]:
  try:
    config = read_config(path)
    return str(config["system"]), str(config["kind"])
  except DamagedCase:
    return "?", "?"


if __name__ == "__main__":
  sys.exit(main())
