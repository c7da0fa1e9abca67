"""`jaxlm runs [DIR]`: a table of the runs below a folder."""

import pathlib

from jaxlm import json_text
from jaxlm.commands.exits import command
from jaxlm.commands.flags import Parser
from jaxlm.commands.tables import print_table
from jaxlm.config import ConfigError
from jaxlm.paths import expand

MOST_KEYS = 6

USAGE = """The runs below a folder: state, step, last loss and speed, and the keys in which they differ.

  finished     all steps are done          stopped      by a signal; the same command continues
  running      a process writes to it      failed       `--json` says why
  interrupted  nobody writes to it, and it has not ended: the same command continues"""


@command("jaxlm runs")
def main(argv: list[str]) -> int:
  """`jaxlm runs`. Exit codes: `jaxlm.commands.exits`."""
  parser = Parser("jaxlm runs", description=USAGE, example="jaxlm runs runs")
  parser.add_argument("folder", metavar="DIR", nargs="?", default="runs", help="default: runs")
  parser.add_argument("--json", action="store_true", help="one JSON object per run")
  args = parser.parse_args(argv)
  root = expand(args.folder)
  if not pathlib.Path(root).is_dir():
    raise ConfigError(f"there is no folder {args.folder}; name one that holds runs: jaxlm runs DIR")

  from jaxlm.discover.runs import age, apart, find, look, value_at

  runs = [look(folder) for folder in find(root)]
  if not runs:
    raise ConfigError(
      f"{args.folder} holds no run; `jaxlm train --workdir={args.folder}/NAME` makes one"
    )
  if args.json:
    for run in runs:
      print(
        json_text.dumps(
          {
            "run": run.folder,
            "state": run.state,
            "why": run.why,
            "step": run.step,
            "steps": run.steps,
            "metrics": dict(run.numbers),
          }
        )
      )
    return 0
  keys = apart(runs)

  def number(run, name: str, form: str) -> str:
    value = run.numbers.get(name)
    return format(value, form) if isinstance(value, (int, float)) else ""

  rows = [
    [
      str(pathlib.Path(run.folder).relative_to(root)) if run.folder != root else run.folder,
      run.state,
      f"{run.step}/{run.steps}" if run.steps else str(run.step),
      number(run, "loss", ".4f"),
      number(run, "eval/loss", ".4f"),
      number(run, "tokens_per_s", ",.0f"),
      age(run.changed) if run.changed else "",
      *(str(value_at(run.config, key)) if run.config else "" for key in keys[:MOST_KEYS]),
    ]
    for run in runs
  ]
  more = len(keys) - MOST_KEYS
  print_table(
    ("run", "state", "step", "loss", "eval/loss", "tokens/s", "ago", *keys[:MOST_KEYS]),
    rows,
    box=False,
    caption=f"{more} more keys differ; `jaxlm config RUN --short` prints all of a run"
    if more > 0
    else "",
  )
  return 0
