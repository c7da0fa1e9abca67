"""Names of a package that are imported when they are asked for, so that the package's import is cheap."""

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attributes(
  package: str, table: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """(`__getattr__`, `__dir__`) for a package. table: name -> module that has it."""

  def get(name: str) -> Any:
    if name not in table:  # also where Python looks for a submodule that is not imported yet
      close = difflib.get_close_matches(name, names(), n=1)
      raise AttributeError(
        f"module {package!r} has no attribute {name!r}"
        + (f"; did you mean {close[0]!r}?" if close else "")
      )
    value = getattr(importlib.import_module(table[name]), name)
    setattr(sys.modules[package], name, value)
    return value

  def names() -> list[str]:
    return sorted({*vars(sys.modules[package]), *table})

  return get, names


def by_name(modules: Mapping[str, str]) -> dict[str, str]:
  """{name: module} of {module: "names in a line"}."""
  return {name: module for module, names in modules.items() for name in names.split()}
