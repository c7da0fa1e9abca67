"""A package of an operation is called as its public function.

`from jaxlm.kernels import ssd` gives the package `jaxlm.kernels.ssd`: `ssd(...)` computes, and
`ssd.reference` is its module.
"""

import inspect
import sys
import types
from collections.abc import Callable
from typing import Any


class Operation(types.ModuleType):
  """A package whose public function has the package's name."""

  __wrapped__: Callable

  def __call__(self, *args, **kwargs):
    return self.__wrapped__(*args, **kwargs)


def callable_package(function: Callable) -> None:
  """Makes the package `jaxlm.kernels.<name of the function>` callable. For its `__init__`."""
  package: Any = sys.modules[f"jaxlm.kernels.{function.__name__}"]
  package.__class__ = Operation
  package.__wrapped__ = function
  package.__signature__ = inspect.signature(function)
