"""Configuration: a ConfigDict file becomes frozen dataclasses once, strictly, before anything is allocated.

Every room owns the dataclasses of its own fields. `build` turns a plain mapping into one of them; a wrong
key is answered with the nearest right one, a wrong type with the type that was wanted. A field whose
annotation is a `Kinds` table (`typing.Annotated[object, KINDS]`) is a tagged union: the mapping's `kind`
picks the class. Impossible combinations are refused by the dataclass's own `__post_init__`.
"""

import dataclasses
import difflib
import functools
import importlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
  """A configuration that cannot be meant. The message names the key, the value and the remedy."""


def nearest(key: str, known) -> str:
  """'did you mean ...?' for a wrong name, or the list of right ones."""
  known = sorted(map(str, known))
  close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
  return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


class Kinds:
  """A tagged union: kind -> 'module:Class', imported only when chosen.

  what: the noun for messages ('mixer'). The class is a frozen dataclass without a `kind` field; its kind
  is the table's key. default: kind of a mapping that names none; None: it must name one.
  """

  def __init__(self, what: str, table: Mapping[str, str], default: str | None = None):
    self.what, self.table, self.default = what, dict(table), default

  def with_default(self, kind: str) -> "Kinds":
    """The same kinds, also those registered later, where a mapping without a kind means `kind`."""
    out = Kinds(self.what, {}, kind)
    out.table = self.table
    return out

  def cls(self, kind: str, path: str = "") -> type:
    if kind not in self.table:
      where = f"{path}.kind" if path else f"{self.what} kind"
      raise ConfigError(f"{where} = {kind!r} is not a {self.what}; {nearest(str(kind), self.table)}")
    module, name = self.table[kind].split(":")
    return getattr(importlib.import_module(module), name)

  def kind_of(self, config) -> str:
    """The key under which this config's class is registered."""
    name = f"{type(config).__module__}:{type(config).__qualname__}"
    return next(kind for kind, target in self.table.items() if target == name)

  def build(self, mapping: Mapping, path: str = ""):
    mapping = dict(mapping)
    if "kind" not in mapping and self.default is None:
      raise ConfigError(f"{path or self.what}: no 'kind'; known: {', '.join(sorted(self.table))}")
    kind = mapping.pop("kind", self.default)
    return build(self.cls(kind, path), mapping, path)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
  return typing.get_type_hints(cls, include_extras=True)


def build(cls: type, mapping: Mapping, path: str = ""):
  """cls(**mapping), strictly: unknown, missing and ill-typed keys raise ConfigError.

  path: where this mapping sits in the whole configuration ('model.mixer'), for messages.
  """
  fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
  at = lambda key: f"{path}.{key}" if path else key
  for key in mapping:
    if key not in fields:
      raise ConfigError(f"unknown key {at(key)!r}; {nearest(key, fields)}")
  values = {}
  for name, field in fields.items():
    if name in mapping:
      values[name] = _convert(mapping[name], _hints(cls)[name], at(name))
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise ConfigError(f"missing key {at(name)!r} ({_type_name(_hints(cls)[name])})")
  try:
    return cls(**values)
  except ConfigError as error:
    said = re.search(rf"(?<![\w.]){re.escape(path)}\b", str(error))      # 'model' is not said by 'd_model'
    raise ConfigError(str(error) if said else f"{path}: {error}") from None


def _convert(value, hint, path: str):
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Annotated:
    kinds = next((a for a in args[1:] if isinstance(a, Kinds)), None)
    if kinds is None:
      return _convert(value, args[0], path)
    if value is None and type(None) in typing.get_args(args[0]):
      return None
    if isinstance(value, Mapping):
      return kinds.build(value, path)
    if isinstance(value, str):  # 'rope' is short for {'kind': 'rope'}
      return kinds.build({"kind": value}, path)
    if dataclasses.is_dataclass(value):
      return value
    raise ConfigError(f"{path} = {value!r}: wanted a {kinds.what} (a mapping with 'kind')")
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    errors = []
    for option in args:
      if option is not type(None):
        try:
          return _convert(value, option, path)
        except ConfigError as error:
          errors.append(error)
    if len(errors) == 1:
      raise errors[0]
    raise ConfigError(f"{path} = {value!r}: wanted {_type_name(hint)}")
  if origin is typing.Literal:
    if value in args:
      return value
    raise ConfigError(f"{path} = {value!r}; {nearest(str(value), args)}")
  if hint is Any or hint is object:
    return value
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise ConfigError(f"{path} = {value!r}: wanted a tuple, got {type(value).__name__}")
    if len(args) == 2 and args[1] is Ellipsis:
      return tuple(_convert(v, args[0], f"{path}[{i}]") for i, v in enumerate(value))
    if args and len(args) != len(value):
      raise ConfigError(f"{path} = {value!r}: wanted {len(args)} values, got {len(value)}")
    return tuple(_convert(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, args)))
  if origin in (dict, Mapping) or hint in (dict, Mapping):
    if not isinstance(value, Mapping):
      raise ConfigError(f"{path} = {value!r}: wanted a mapping, got {type(value).__name__}")
    if not args:
      return dict(value)
    return {k: _convert(v, args[1], f"{path}.{k}") for k, v in value.items()}
  if dataclasses.is_dataclass(hint):
    if isinstance(value, hint):
      return value
    if not isinstance(value, Mapping):
      raise ConfigError(f"{path} = {value!r}: wanted a mapping, got {type(value).__name__}")
    return build(hint, value, path)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
    return value
  raise ConfigError(f"{path} = {value!r}: wanted {_type_name(hint)}, got {type(value).__name__}")


def _type_name(hint) -> str:
  if typing.get_origin(hint) is typing.Annotated:
    kinds = next((a for a in typing.get_args(hint)[1:] if isinstance(a, Kinds)), None)
    return kinds.what if kinds else _type_name(typing.get_args(hint)[0])
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return " or ".join(_type_name(a) for a in typing.get_args(hint))
  return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def to_dict(config) -> dict:
  """The plain mapping that `build` would read back, without the `kind` tags of unions."""
  return dataclasses.asdict(config)
