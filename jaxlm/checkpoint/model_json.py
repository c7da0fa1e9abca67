"""A model's configuration as plain JSON and back: the `model` section of a config file, of a run
and of a weights folder.
"""

import dataclasses
import typing

from jaxlm.config import ConfigError, Kinds
from jaxlm.models import MODELS


def described(model) -> dict:
  """The mapping that `read_model` reads back."""
  return {"kind": MODELS.kind_of(model)} | tagged(model)


def read_model(mapping, where: str):
  """A model's dataclass from the mapping under `model`. where: the file, for errors."""
  if not isinstance(mapping, dict):
    raise ConfigError(f"{where}: model is a {type(mapping).__name__}, wanted a mapping")
  try:
    return MODELS.build(mapping, "model")
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from None


def tagged(value, hint=None):
  """The plain mapping that `config.build` reads back: dataclasses as mappings, members of a union
  with their kind.
  """
  if dataclasses.is_dataclass(value):
    hints = typing.get_type_hints(type(value), include_extras=True)
    kinds = _kinds_in(hint)
    tag = {"kind": kinds.kind_of(value)} if kinds else {}
    return tag | {
      f.name: tagged(getattr(value, f.name), hints[f.name])
      for f in dataclasses.fields(value)
      if f.init
    }
  if isinstance(value, (tuple, list)):
    return [tagged(v, hint) for v in value]
  if isinstance(value, dict):
    return {k: tagged(v, hint) for k, v in value.items()}
  return value


def _kinds_in(hint) -> Kinds | None:
  """The union that a type hint names, also inside `tuple[...]` or `... | None`."""
  for arg in typing.get_args(hint):
    found = arg if isinstance(arg, Kinds) else _kinds_in(arg)
    if found is not None:
      return found
  return None
