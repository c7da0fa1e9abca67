"""Runs a benchmark and keeps what it printed, with what it was measured on.

  python bench/keep.py sums -- taskset -c 1 python bench/sums.py
  python bench/keep.py --fill                                     # bench/RESULTS.md anew, from the JSON

Writes bench/measured/NAME.json: the command, date, revision, CPU model, cores, load before and after,
versions of the libraries, and every Markdown table of the output as rows. A table of bench/RESULTS.md
stands between `<!-- measured NAME 1 -->` and `<!-- end -->`; the number counts the tables of that output.
"""

import importlib.metadata
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

from jaxlm import json_text
from jaxlm.experiments import record

BENCH = pathlib.Path(__file__).parent
PAGE, MEASURED = BENCH / "RESULTS.md", BENCH / "measured"
MARKED = re.compile(r"(<!-- measured (\w+) (\d+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables(text: str) -> list[list[list[str]]]:
  """The Markdown tables of a text, as rows of cells; the line of dashes is left out."""
  found: list[list[list[str]]] = []
  inside = False
  for line in text.splitlines():
    if line.startswith("|"):
      cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
      if not inside:
        found.append([])
      if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
        found[-1].append(cells)
    inside = line.startswith("|")
  return found


def keep(name: str, command: list[str]) -> int:
  """Runs the command, passes its output on and writes the JSON if it ended well."""
  made = record.made_by()  # with the load before
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
  print(done.stdout, end="")
  if done.returncode:
    return done.returncode
  made |= {
    "command": shlex.join(
      "python" if pathlib.Path(word).name.startswith("python") else word for word in command
    ),
    "load_after": round(os.getloadavg()[0], 1),
    "versions": {lib: importlib.metadata.version(lib) for lib in ("jax", "jaxlib", "numpy")},
    "tables": tables(done.stdout),
  }
  MEASURED.mkdir(exist_ok=True)
  (MEASURED / f"{name}.json").write_text(json_text.dumps(made, indent=1) + "\n")
  return 0


def fill(text: str) -> str:
  """The page with every marked table made anew from its JSON."""

  def made(match) -> str:
    begin, name, number, end = match.groups()
    saved = json.loads((MEASURED / f"{name}.json").read_text())
    head, *rows = saved["tables"][int(number) - 1]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return (
      begin
      + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
      + f"\n`{saved['command']}`, {saved['date']}, revision {saved['revision']}, {saved['cpu']}, {saved['cores']} cores, load "
      + f"{saved['load']} before and {saved['load_after']} after, jax {saved['versions']['jax']}.\n"
      + end
    )

  return MARKED.sub(made, text)


def main(argv: list[str]) -> int:
  if argv == ["--fill"]:
    PAGE.write_text(fill(PAGE.read_text()))
    return 0
  if len(argv) < 3 or argv[1] != "--":
    print(__doc__, file=sys.stderr)
    return 2
  return keep(argv[0], argv[2:])


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
