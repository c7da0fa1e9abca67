"""`jaxlm COMMAND ...`: each command is a module with `main(argv) -> exit code`, imported only when
called.

The exit codes are listed in `jaxlm.commands.exits`."""

import importlib
import sys
from collections.abc import Sequence

from jaxlm import __version__
from jaxlm.commands.interrupt import during_imports

COMMANDS = {
  "train": ("jaxlm.training.command", "train a model, or resume its run"),
  "eval": ("jaxlm.evaluation.command", "perplexity and bits per byte of a run, at any length"),
  "generate": ("jaxlm.generation.command", "continue a prompt with a trained model"),
  "config": ("jaxlm.discover.config_command", "every key of a configuration, explained"),
  "list": (
    "jaxlm.discover.list_command",
    "models, mixers, positions, ..., configs, tables, kernels",
  ),
  "runs": ("jaxlm.discover.runs_command", "the runs below a folder, side by side"),
  "report": ("jaxlm.discover.report_command", "one HTML page about a run"),
  "preflight": (
    "jaxlm.preflight.command",
    "compile for a TPU slice that is not there: memory, FLOPs, collectives",
  ),
  "kernels": ("jaxlm.kernels.command", "which implementation each op uses, and why not others"),
  "verify": ("jaxlm.interop.verify", "compare with the official implementations' arrays"),
  "convert": ("jaxlm.interop.convert", "weights of other libraries in and out"),
  "probe": ("jaxlm.analysis.command", "read and draw attention, norms and attributions of a run"),
  "data": (
    "jaxlm.data.command",
    "list and prepare corpora, tokenise them once for all hosts, check stores",
  ),
  "table": ("jaxlm.experiments.command", "run the rows of a paper's table and print it"),
  "reproduce": (
    "jaxlm.experiments.reproduce.command",
    "run all tables in order of value, then write REPRODUCTION.md",
  ),
  "completion": ("jaxlm.discover.completion.command", "make the shell complete commands and flags"),
}


def usage() -> str:
  rows = "\n".join(f"  {name:<11} {what}" for name, (_, what) in COMMANDS.items())
  return (
    f"jaxlm {__version__}\n\nusage: jaxlm COMMAND ...\n\n{rows}\n\njaxlm COMMAND --help says more."
  )


def main(argv: Sequence[str] | None = None) -> int:
  with during_imports():
    from jaxlm.commands.exits import command

    return command("jaxlm")(_main)(argv)


def _main(argv: list[str]) -> int:
  import logging

  from jaxlm.commands.exits import WRONG, refuse

  if len(argv) > 1 and argv[0] == "help" and argv[1] in COMMANDS:
    argv = [argv[1], "--help"]
  if not argv or argv[0] in ("-h", "--help", "help"):
    print(usage())
    return 0 if argv else 2
  if argv[0] in ("-V", "--version"):
    print(f"jaxlm {__version__}")
    return 0
  if argv[0] not in COMMANDS:
    from jaxlm.config import nearest

    if argv[0].startswith("-"):
      sentence = f"the command comes first, as in: jaxlm train {argv[0]}"
      return refuse("jaxlm", f"no command before {argv[0].partition('=')[0]}; {sentence}", WRONG)
    return refuse("jaxlm", f"no command {argv[0]!r}; {nearest(argv[0], COMMANDS)}", WRONG)
  logging.getLogger("absl").setLevel(
    logging.ERROR
  )  # Orbax and Grain warn about what a reader leaves unread
  return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:]) or 0


if __name__ == "__main__":
  sys.exit(main())
