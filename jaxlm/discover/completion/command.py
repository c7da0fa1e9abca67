"""`jaxlm completion bash|zsh`: prints a script with which the shell completes commands and flags."""

import argparse
import importlib

from jaxlm.commands.exits import command
from jaxlm.commands.flags import Parser, collected_parsers
from jaxlm.config import ConfigError

SHELLS = ("bash", "zsh")
USAGE = """Print a script that makes the shell complete commands and flags (extra `completion`).

  bash: jaxlm completion bash > ~/.local/share/bash-completion/completions/jaxlm
  zsh:  jaxlm completion zsh > ~/.zsh/completions/_jaxlm      (a folder of $fpath)"""


@command("jaxlm completion")
def main(argv: list[str]) -> int:
  """`jaxlm completion`. Exit codes: `jaxlm.commands.exits`."""
  parser = Parser("jaxlm completion", description=USAGE, example="jaxlm completion bash")
  parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash or zsh")
  args = parser.parse_args(argv)
  try:
    import shtab
  except ImportError:
    raise ConfigError("completion needs shtab: pip install 'jaxlm[completion]'") from None
  print(shtab.complete(whole_parser(), shell=args.shell))
  return 0


def whole_parser() -> argparse.ArgumentParser:
  """One parser of all commands. No command runs."""
  from jaxlm.cli import COMMANDS

  whole = argparse.ArgumentParser("jaxlm", add_help=True)
  commands = whole.add_subparsers(metavar="COMMAND")
  for name, (module, what) in COMMANDS.items():
    with collected_parsers() as found:
      importlib.import_module(module).main([])
    parents = [_plain(found[0])] if found else []
    commands.add_parser(name, help=what, parents=parents, add_help=not parents)
  return whole


def _plain(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
  """The parser with help texts that shtab may format."""
  for action in parser._actions:
    if isinstance(action.help, str):
      action.help = " ".join(action.help.split())
  return parser
