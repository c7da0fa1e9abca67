"""Flags of commands: `--flag value` and `--flag=value`; a wrong or missing one is answered with the
right one.
"""

import argparse
import ast
import contextlib
import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from jaxlm.config import ConfigError, nearest

CONFIG = ("--config",)
WHAT_CONFIG_NAMES = (
  "FILE.py, FILE.py:ARG, FILE.json, FILE.toml, a run folder, or a name of `jaxlm list configs`"
)
_collected: list["Parser"] | None = None


@contextlib.contextmanager
def collected_parsers():
  """A list that gets the parsers of commands that are called within; they do nothing else."""
  global _collected
  before, _collected = _collected, []
  try:
    yield _collected
  finally:
    _collected = before


class Parser(argparse.ArgumentParser):
  """argparse whose errors are ConfigError.

  example: a whole command, shown where a required flag is missing. others: flags that are read
  before this parser; `--config` is shown in its help. bare: the flags that a word without one was
  meant for, the first that is not given. keys: the key of the configuration that an unknown flag's
  name stands for. `-` and `_` inside a flag's name are the same; `_` is shown.
  """

  def __init__(
    self,
    prog: str,
    *,
    example: str = "",
    others: Sequence[str] = (),
    bare: str | Sequence[str] = (),
    keys: Callable[[str], str | None] = lambda name: None,
    **options,
  ):
    options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
    super().__init__(prog, allow_abbrev=False, **options)
    self.example, self.others, self.words = example, tuple(others), []
    self.bares = (bare,) if isinstance(bare, str) else tuple(bare)
    self.keys = keys
    if "--config" in self.others:  # read by `parse_flags`
      self.add_argument("--config", metavar="FILE", help=WHAT_CONFIG_NAMES)
      self.add_argument(
        "--config.KEY", metavar="VALUE", help="one value of it, as in --config.model.d_model=256"
      )

  def add_argument(self, *names, **options):
    if options.get("metavar") is None and options.get("nargs") is None:
      letter = {float: "X", whole: "N"}.get(options.get("type"))
      if letter is not None:
        options["metavar"] = letter
    return super().add_argument(*names, **options)

  def parse_args(self, args=None, namespace=None):
    if _collected is not None:
      _collected.append(self)
      raise SystemExit(0)
    namespace, rest = self.parse_known_args(args, namespace)
    if rest:
      raise ConfigError(self._unknown(rest[0]))
    return namespace

  def parse_known_args(self, args=None, namespace=None):  # also called for a command's command
    self.words = [self._spelled(word) for word in args]
    return super().parse_known_args(self.words, namespace)

  def error(self, message: str):
    """argparse's own sentence, turned into ours where it leaves the remedy open."""
    word = self._bare_word()
    if self.bare and word:
      raise ConfigError(self._without_flag(word))
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
      said = nearest(choice[2], [c.strip(" '") for c in choice[3].split(",")])
      flag = choice[1].startswith("-")
      raise ConfigError(
        f"{choice[1]} {choice[2]}: {said}" if flag else f"{choice[2]!r} is not known here; {said}"
      )
    raise ConfigError(message)

  @property
  def bare(self) -> str:
    given = {word.partition("=")[0] for word in self.words}
    return next((flag for flag in self.bares if flag and flag not in given), "")

  def _bare_word(self) -> str | None:
    """The first word that is neither a flag nor a flag's value."""
    takes = False
    for word in self.words:
      if word.startswith("-"):
        action = self._option_string_actions.get(word.partition("=")[0])
        takes = "=" not in word and action is not None and action.nargs != 0
      elif not takes:
        return word
      else:
        takes = False
    return None

  def _without_flag(self, word: str) -> str:
    return f"{word!r} stands without its flag; write {self.bare}={shlex.quote(word)}" + (
      f", as in: {self.example}" if self.example else ""
    )

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
    if not flag.startswith("-") and self.bare:
      return self._without_flag(word)
    if not flag.startswith("-"):
      return f"{word!r} is not expected here" + (
        f"; for example: {self.example}" if self.example else ""
      )
    if flag.startswith("--") and (key := self.keys(flag.lstrip("-"))) is not None:
      return f"unknown flag {flag}; keys of the configuration are written --config.{key}=VALUE"
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


def parse_flags(argv: Sequence[str]) -> tuple[str | None, dict[str, Any], list[str]]:
  """(config spec, overrides, the rest) of '--config=...', '--config.a.b=value' and '--config.a.b
  value'.
  """
  spec, overrides, rest = None, {}, []
  argv = list(argv)
  while argv:
    flag, equals, value = argv.pop(0).partition("=")
    if flag != "--config" and not flag.startswith("--config."):
      rest.append(flag + equals + value)
      continue
    if not equals:
      if not argv or argv[0].startswith("--"):
        raise ConfigError(f"{flag} has no value; write {flag}=...")
      value = argv.pop(0)
    if flag == "--config":
      spec = value
    else:
      overrides[flag.removeprefix("--config.")] = _literal(value)
  return spec, overrides, rest


def _literal(text: str):
  """A Python literal where it is one ('1e-3', '(2, 4)', 'None', 'true'), else the text itself."""
  if text in ("true", "false"):
    return text == "true"
  try:
    return ast.literal_eval(text)
  except (
    ValueError,
    SyntaxError,
    TypeError,
    MemoryError,
    RecursionError,
  ):  # also of what nests too deep, or cannot be a key
    return text
