"""Runs and weights folders: what they hold, how it is checked, and the one way to read it."""

from typing import TYPE_CHECKING

from jaxlm import lazy

if TYPE_CHECKING:
  from jaxlm.checkpoint.opening import Opened as Opened
  from jaxlm.checkpoint.opening import open_model as open_model

_NAMES = lazy.by_name(
  {
    "jaxlm.checkpoint.opening": "Opened open_model",
  }
)
__getattr__, __dir__ = lazy.attributes(__name__, _NAMES)
__all__ = list(_NAMES)
