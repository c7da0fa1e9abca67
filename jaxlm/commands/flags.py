"""Flags of commands: `--flag value` and `--flag=value`; a wrong or missing one is answered with the
right one.
"""

import argparse
import difflib
import re
from collections.abc import Sequence

from jaxlm.config import ConfigError, nearest

CONFIG = ("--config",)


class Parser(argparse.ArgumentParser):
  """argparse whose errors are ConfigError.

  example: a whole command, shown where a required flag is missing. others: flags that are read
  before this parser. `-` and `_` inside a flag's name are the same.
  """

  def __init__(self, prog: str, *, example: str = "", others: Sequence[str] = (), **options):
    options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
    super().__init__(prog, allow_abbrev=False, **options)
    self.example, self.others = example, tuple(others)

  def parse_args(self, args=None, namespace=None):
    args = [self._spelled(word) for word in args]
    namespace, rest = self.parse_known_args(args, namespace)
    if rest:
      raise ConfigError(self._unknown(rest[0]))
    return namespace

  def error(self, message: str):
    """argparse's own sentence, turned into ours where it leaves the remedy open."""
    missing = re.fullmatch(r"the following arguments are required: (.*)", message)
    if missing:
      raise ConfigError(
        f"{missing[1]} {'are' if ', ' in missing[1] else 'is'} missing"
        + (f"; for example: {self.example}" if self.example else "")
      )
    valueless = re.fullmatch(
      r"argument (\S+): expected (?:one argument|at least one argument)", message
    )
    if valueless:
      raise ConfigError(f"{valueless[1]} has no value; write {valueless[1]}=VALUE")
    wrong = re.fullmatch(r"argument (\S+): invalid (\w+) value: (.*)", message)
    if wrong:
      wanted = {
        "whole": "a whole number, like 1000 or 1e3",
        "int": "a whole number",
        "float": "a number, like 0.9",
      }
      raise ConfigError(
        f"{wrong[1]}={wrong[3].strip(chr(39))}: wanted {wanted.get(wrong[2], wrong[2])}"
      )
    choice = re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message)
    if choice:
      raise ConfigError(
        f"{f'{choice[1]} ' if choice[1].startswith('-') else ''}{choice[2]}: {nearest(choice[2], [c.strip(' ' + chr(39)) for c in choice[3].split(',')])}"
      )
    raise ConfigError(message)

  def _flags(self) -> list[str]:
    return [*self._option_string_actions, *self.others]

  def _spelled(self, word: str) -> str:
    flag, equals, value = word.partition("=")
    if value == "--":  # argparse would make an empty list of it
      raise ConfigError(f"{flag} has no value; write {flag}=VALUE")
    if not flag.startswith("--") or flag in self._option_string_actions:
      return word
    same = [
      known
      for known in self._option_string_actions
      if known.replace("_", "-") == flag.replace("_", "-")
    ]
    return same[0] + equals + value if same else word

  def _unknown(self, word: str) -> str:
    flag = word.partition("=")[0]
    if not flag.startswith("-"):
      return f"{word!r} is not expected here" + (
        f"; for example: {self.example}" if self.example else ""
      )
    # By the name without dashes: with them every flag is like every other.
    names = {known.lstrip("-"): known for known in self._flags() if known.startswith("--")}
    close = difflib.get_close_matches(flag.lstrip("-").replace("-", "_"), names, n=1, cutoff=0.5)
    return f"unknown flag {flag}; " + (
      f"did you mean {names[close[0]]}?" if close else f"known: {', '.join(names.values())}"
    )


def whole(text: str) -> int:
  """A whole number as people write it: 1000, 1_000, 1e3."""
  try:
    return int(text)
  except ValueError:
    number = float(text)
    if not number.is_integer():
      raise ValueError(text) from None
    return int(number)
