"""Parts of a configuration that live outside this package.

A kind is looked up in its table, then among the entry points of installed packages, group
`jaxlm.<noun>` (`jaxlm.mixer`, `jaxlm.position`, ...); a kind written as `my_package.my_module:Class`
is imported. To import a module runs its code, so one that only a JSON file names must be of a
package that is installed, imported already, or named in the environment variable JAXLM_PARTS.
Python configurations, `jaxlm.register` and the command line are the user's own word.
"""

import functools
import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Mapping, Sequence

TARGET = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
VARIABLE = "JAXLM_PARTS"

_trusted: set[str] = set()


class OutsideError(ImportError):
  """A part that cannot be had. The message says what to do."""


@functools.cache
def entry_points(what: str) -> dict[str, str]:
  """{kind: 'module:Class'} that installed packages declare for tables of this noun."""
  found = importlib.metadata.entry_points(group=f"jaxlm.{what.replace(' ', '_').lower()}")
  return {entry.name: entry.value for entry in found}


def is_target(kind) -> bool:
  """Whether a kind is written as module:Class."""
  return isinstance(kind, str) and TARGET.fullmatch(kind) is not None


def trust(value) -> None:
  """Allows the packages of every module:Class in a mapping that the user has written."""
  if isinstance(value, Mapping):
    for item in value.values():
      trust(item)
  elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
    for item in value:
      trust(item)
  elif is_target(value):
    _trusted.add(_root(value))


def load(target: str, *, checked: bool = True):
  """The object of module:Class. checked: only of a package that may be imported."""
  module, _, name = target.partition(":")
  if checked and not _may_import(_root(target)):
    raise OutsideError(
      f"{target} is of the package {_root(target)!r}, which is not installed, and to import it runs its code. "
      f"If you trust it, set {VARIABLE}={_root(target)}"
    )
  try:
    found = importlib.import_module(module)
  except ImportError as error:
    raise OutsideError(
      f"module {module!r} cannot be imported ({error}); install its package, or put its folder into PYTHONPATH"
    ) from None
  try:
    return functools.reduce(getattr, name.split("."), found)
  except AttributeError:
    raise OutsideError(f"module {module!r} has no {name!r}") from None


def _root(target: str) -> str:
  return target.partition(":")[0].partition(".")[0]


def _may_import(root: str) -> bool:
  named = os.environ.get(VARIABLE, "").replace(",", " ").split()
  return root in {*_trusted, *named} or root in sys.modules or root in _installed()


@functools.cache
def _installed() -> frozenset[str]:
  return frozenset(importlib.metadata.packages_distributions())
