"""A configuration as a list of its keys, with their values and what they mean."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from jaxlm.discover.fields import Key, keys, kinds_of


@dataclasses.dataclass(frozen=True)
class Entry:
  """One key of a configuration. path: dotted, as --config takes it. value: the kind, of a part."""

  path: str
  value: Any
  key: Key
  is_part: bool = False

  @property
  def changed(self) -> bool:
    """Whether the value is another than the key's default."""
    return self.key.required or _plain(self.key.default) != _plain(self.value)


def entries(config, path: str = "") -> Iterator[Entry]:
  """Every key of a configuration (frozen dataclasses) in order, parts before what is in them."""
  hints = typing.get_type_hints(type(config), include_extras=True)
  for key in keys(type(config)):
    yield from _entry(f"{path}{key.name}", getattr(config, key.name), key, hints[key.name])


def _entry(path: str, value, key: Key, hint) -> Iterator[Entry]:
  kinds = kinds_of(hint)
  if dataclasses.is_dataclass(value):
    shown = kinds.kind_of(value) if kinds else type(value).__name__
    if kinds and dataclasses.is_dataclass(key.default):
      key = dataclasses.replace(key, default=kinds.kind_of(key.default))
    if kinds:
      yield Entry(path, shown, key, is_part=True)
    yield from entries(value, f"{path}.")
  elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
    shown = tuple(kinds.kind_of(v) if kinds else type(v).__name__ for v in value)
    yield Entry(path, shown, key, is_part=True)
    for i, item in enumerate(value):
      yield from entries(item, f"{path}.{i}.")
  else:
    yield Entry(path, value, key)


def _plain(value):
  return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
