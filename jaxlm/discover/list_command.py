"""`jaxlm list WHAT`: the kinds of a part, the configurations, tables and operations that there are."""

from jaxlm import json_text
from jaxlm.commands.exits import command
from jaxlm.commands.flags import Parser
from jaxlm.commands.tables import print_table
from jaxlm.config import ConfigError, nearest


@command("jaxlm list")
def main(argv: list[str]) -> int:
  """`jaxlm list`. Exit codes: `jaxlm.commands.exits`."""
  from jaxlm.discover.listing import LISTS

  parser = Parser(
    "jaxlm list",
    description=f"List what there is, with a line about each.\n\nWHAT: {', '.join(LISTS)}.",
    example="jaxlm list mixers",
  )
  parser.add_argument("what", metavar="WHAT", nargs="?")
  parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
  args = parser.parse_args(argv)
  if args.what is None:
    raise ConfigError(f"list what? One of: {', '.join(LISTS)}; for example: jaxlm list mixers")
  if args.what not in LISTS:
    raise ConfigError(f"no list of {args.what!r}; {nearest(args.what, LISTS)}")
  rows = list(LISTS[args.what]())
  if args.json:
    print(json_text.dumps(dict(rows), indent=1))
  else:
    print_table(("name", "what"), rows, words=("what",), box=False)
  return 0
