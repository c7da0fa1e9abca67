"""`jaxlm report RUN`: one static HTML page about a run."""

import pathlib

from jaxlm.commands.exits import command
from jaxlm.commands.flags import Parser, whole
from jaxlm.config import ConfigError
from jaxlm.paths import expand


@command("jaxlm report")
def main(argv: list[str]) -> int:
  """`jaxlm report`. Exit codes: `jaxlm.commands.exits`."""
  parser = Parser(
    "jaxlm report",
    description="Write one static HTML page about a run: numbers, curves, samples, configuration, environment.",
    example="jaxlm report runs/tiny",
  )
  parser.add_argument("run", metavar="RUN", help="run folder")
  parser.add_argument("--out", metavar="FILE", help="default: report.html in the run folder")
  parser.add_argument("--num_samples", type=whole, default=2, help="texts of the model; default 2")
  parser.add_argument("--max_new_tokens", type=whole, default=100, help="of each; default 100")
  parser.add_argument("--seed", type=whole, default=0, help="of the texts; default 0")
  args = parser.parse_args(argv)
  if args.num_samples < 0 or args.max_new_tokens < 1:
    raise ConfigError("--num_samples is 0 or more, --max_new_tokens 1 or more")
  if args.out is None and "://" in args.run:
    raise ConfigError(f"{args.run} is not on this machine; name a file: --out=report.html")
  if args.out and not pathlib.Path(expand(args.out)).absolute().parent.is_dir():
    raise ConfigError(f"--out={args.out}: there is no folder for it; make it first")

  from jaxlm.discover.report import page

  text = page(
    expand(args.run),
    num_samples=args.num_samples,
    max_new_tokens=args.max_new_tokens,
    seed=args.seed,
  )
  file = (
    pathlib.Path(expand(args.out)) if args.out else pathlib.Path(expand(args.run), "report.html")
  )
  file.write_text(text)
  print(file)
  return 0
