"""The keys of a configuration, described: default, type, range, kinds, one line of help.

Help is what the class's docstring says behind `name:`, else the comment at the field, else what
`help_texts` has.
"""

import ast
import dataclasses
import functools
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Any

from jaxlm.config import Kinds
from jaxlm.discover.help_texts import TEXTS
from jaxlm.ranges import Range


@dataclasses.dataclass(frozen=True)
class Key:
  """One key. default: None where there is none (`required`). allowed: range or choices, '' if free.
  kinds: of a part.
  """

  name: str
  type: str
  allowed: str
  default: Any
  required: bool
  help: str
  kinds: tuple[str, ...] = ()


def keys(cls: type) -> Iterator[Key]:
  """The keys of a dataclass in order."""
  hints = typing.get_type_hints(cls, include_extras=True)
  for field in dataclasses.fields(cls):
    if not field.init:
      continue
    default, required = field.default, False
    if default is dataclasses.MISSING:
      factory = field.default_factory
      required = factory is dataclasses.MISSING
      default = None if required else factory()  # type: ignore[operator, misc]
    kinds = kinds_of(hints[field.name])
    yield Key(
      field.name,
      type_name(hints[field.name]),
      allowed(hints[field.name]),
      default,
      required,
      help_of(cls, field.name),
      tuple(sorted(kinds.all())) if kinds else (),
    )


def kinds_of(hint) -> Kinds | None:
  """The table of parts that a type names, itself or of the entries of a list."""
  for arg in typing.get_args(hint):
    if isinstance(arg, Kinds):
      return arg
    found = kinds_of(arg)
    if found is not None:
      return found
  return None


def type_name(hint) -> str:
  """As people read it: 'int', 'float or None', 'tuple of int', 'mixer'."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Annotated:
    kinds = next((arg for arg in args[1:] if isinstance(arg, Kinds)), None)
    optional = type(None) in typing.get_args(args[0])
    return (kinds.what + " or None" * optional) if kinds else type_name(args[0])
  if origin in (typing.Union, types.UnionType):
    return " or ".join(dict.fromkeys(map(type_name, args)))
  if origin is typing.Literal:
    return " or ".join(dict.fromkeys(type(arg).__name__ for arg in args))
  if origin is tuple:
    inner = [arg for arg in args if arg is not Ellipsis]
    return "tuple of " + ", ".join(map(type_name, inner))
  if hint is type(None):
    return "None"
  if hint in (Any, object):
    return "any"
  return getattr(hint, "__name__", str(hint))


def allowed(hint) -> str:
  """The range or the choices of a type, as text."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Literal:
    return " | ".join(map(str, args))
  if origin is typing.Annotated:
    range_ = next((arg for arg in args[1:] if isinstance(arg, Range)), None)
    return str(range_) if range_ is not None else allowed(args[0])
  return "; ".join(filter(None, dict.fromkeys(map(allowed, args))))


@functools.cache
def help_of(cls: type, name: str) -> str:
  """One line about a field: of the class or the first base that says something; '' if none does."""
  for base in cls.__mro__:
    if name in getattr(base, "__annotations__", {}) or base is cls:
      said = _documented(base, name) or _commented(base, name)
      if said:
        return said
  for base in cls.__mro__[1:]:
    if said := _documented(base, name):
      return said
  own = (TEXTS.get(f"{base.__name__}.{name}") for base in cls.__mro__)
  return next(filter(None, own), TEXTS.get(name, ""))


def _documented(cls: type, name: str) -> str:
  """What stands behind 'name:' in the docstring, to the end of its sentence."""
  if not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}("):  # a dataclass's own
    return ""
  text = " ".join(cls.__doc__.split())
  names = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
  for base in cls.__mro__:
    names += getattr(base, "__annotations__", {})
  any_name = "|".join(map(re.escape, sorted(set(names), key=len, reverse=True))) or "(?!)"
  start = re.compile(rf"(?:^|(?<=[\s(]))((?:{any_name})(?:(?:, | and )(?:{any_name}))*)( None)?: ")
  found = list(start.finditer(text))
  for i, match in enumerate(found):
    if name in re.split(r", | and ", match[1]):
      end = found[i + 1].start() if i + 1 < len(found) else len(text)
      said = text[match.end() : end].strip()
      said = re.split(r"(?<=[a-z0-9)\]`'\"])\. (?=[A-Z`\"'(])", said)[0].rstrip(" .;,")
      return f"None: {said}" if match[2] else said
  return ""


@functools.cache
def _comments(cls: type) -> dict[str, str]:
  """{field: the comment on its lines} of a class's source."""
  try:
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
  except (OSError, TypeError, SyntaxError):
    return {}
  found = {}
  for node in body:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      text = "\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n"
      for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(text)).readline):
        if token.type == tokenize.COMMENT:
          found.setdefault(node.target.id, token.string[1:].strip())
  return found


def _commented(cls: type, name: str) -> str:
  return _comments(cls).get(name, "")
