"""One dotted key of a configuration set to a value, as `--config.model.position=rope` says."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import ml_collections

from jaxlm.config import ALIASES, ConfigError, Kinds, unknown_key


def plain(value):
  """Mappings as dicts and sequences as tuples, so that a file, JSON and a command line compare
  equal.
  """
  if isinstance(value, ml_collections.ConfigDict):
    value = dict(value.items())
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


def override(
  config: dict, key: str, value, cls, prefix: str = "", whole: dict | None = None
) -> None:
  """Sets one dotted key in place; the classes along the path say which names exist. A number picks
  an entry of a list.

  cls: of `config`. prefix: of the keys, and whole: the configuration, when it is such an entry.
  """
  root = cls
  whole = config if whole is None else whole
  here, names, kinds = config, key.split("."), None
  for depth, name in enumerate(names):
    at = prefix + ".".join(names[: depth + 1])
    hints = _fields(cls) if cls else {}
    is_kind = kinds is not None and name == "kind"
    if cls and name not in hints and not is_kind:
      known = list(hints) + ["kind"] * (kinds is not None)
      elsewhere = _same_name(name, whole, root) if not prefix else None
      raise unknown_key(name, f"--config.{at}", cls, known, elsewhere)
    if is_kind:
      _switch_kind(here, kinds, value, at)
      return
    inner_kinds = kinds_of(hints.get(name))
    if depth == len(names) - 1:
      if inner_kinds is not None and isinstance(value, str):
        if not isinstance(here.get(name), Mapping):
          here[name] = (
            {"kind": value} if not isinstance(here.get(name), str) else {"kind": here[name]}
          )
        _switch_kind(here[name], inner_kinds, value, at)
      else:
        here[name] = plain(value)
      return
    if isinstance(here.get(name), str) and inner_kinds is not None:
      here[name] = {"kind": here[name]}
    if isinstance(here.get(name), tuple):
      here[name] = _override_entry(here[name], names[depth + 1 :], value, hints.get(name), at)
      return
    if not isinstance(here.get(name, {}), Mapping) and here.get(name) is not None:
      raise ConfigError(f"--config.{prefix}{key}: {at} = {here[name]!r} has no fields")
    if here.get(name) is None:
      here[name] = {}
    here, kinds = here[name], inner_kinds
    if kinds is not None:
      kind = here.get("kind", kinds.default)
      cls = kinds.cls(kind, at) if kind is not None else None
    else:
      cls = next((t for t in _alternatives(hints.get(name)) if dataclasses.is_dataclass(t)), None)


def _override_entry(items: tuple, names: list[str], value, hint, at: str) -> tuple:
  """The list with one entry, or something inside it, replaced. names: what follows the list's name
  in the key.
  """
  number, *rest = names
  if not number.isdecimal() or int(number) >= len(items):
    raise ConfigError(
      f"--config.{at}.{'.'.join(names)}: {at} is a list of {len(items)}; wanted {at}.0 .. {at}.{len(items) - 1}"
      if items
      else f"--config.{at}.{'.'.join(names)}: {at} is an empty list; give the whole of it"
    )
  item, element = items[int(number)], next(iter(typing.get_args(hint)), None)
  if not rest:
    item = plain(value)
  elif isinstance(item, Mapping):
    item, kinds = dict(item), kinds_of(element)
    cls = kinds.cls(item["kind"], f"{at}.{number}") if kinds and "kind" in item else element
    override(
      item,
      ".".join(rest),
      value,
      cls if dataclasses.is_dataclass(cls) else None,
      f"{at}.{number}.",
      {},
    )
  else:
    raise ConfigError(f"--config.{at}.{'.'.join(names)}: {at}.{number} = {item!r} has no fields")
  return (*items[: int(number)], item, *items[int(number) + 1 :])


def _switch_kind(section: dict, kinds: Kinds, kind: str, at: str) -> None:
  fields = {field.name for field in dataclasses.fields(kinds.cls(kind, at.removesuffix(".kind")))}
  for name in [name for name in section if name not in fields]:
    del section[name]
  section["kind"] = kind


def kinds_of(hint) -> Kinds | None:
  if typing.get_origin(hint) is Annotated:
    return next((arg for arg in typing.get_args(hint)[1:] if isinstance(arg, Kinds)), None)
  return None


def _alternatives(hint) -> tuple:
  return typing.get_args(hint) or (hint,)


def _fields(cls) -> dict[str, Any]:
  """{name: type} of the keys that a configuration may give."""
  hints = typing.get_type_hints(cls, include_extras=True)
  return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _same_name(name: str, config: Mapping, cls) -> str | None:
  """The key of another section with the name that a user gave, or with its other name."""
  wanted = {name, ALIASES.get(name, name)}
  return next((path for path in _paths(config, cls) if path.split(".")[-1] in wanted), None)


def _paths(config: Mapping, cls, prefix: str = "") -> Iterator[str]:
  """Every key that a configuration has or could be given, those of a section before what is below."""
  below = []
  for name, hint in _fields(cls).items():
    yield prefix + name
    value, kinds = config.get(name), kinds_of(hint)
    value = {"kind": value} if kinds and isinstance(value, str) else value
    inside: Any = None
    if kinds and isinstance(value, Mapping) and value.get("kind", kinds.default) is not None:
      inside = kinds.cls(value.get("kind", kinds.default))
    elif not kinds:
      inside = next((t for t in _alternatives(hint) if dataclasses.is_dataclass(t)), None)
    if inside is not None:
      below.append((value if isinstance(value, Mapping) else {}, inside, f"{prefix}{name}."))
  for value, inside, at in below:
    yield from _paths(value, inside, at)
