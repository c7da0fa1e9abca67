"""The directive `config-fields`: the keys that a part of a configuration has, from its dataclass.

```{config-fields} jaxlm.layers.positions.carope:CARoPE
```
"""

import dataclasses
import importlib
import types
import typing

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from jaxlm.config import Kinds

HEAD = ("key", "type", "default")


def shown(annotation) -> str:
  """A type as a reader of a configuration would say it."""
  if typing.get_origin(annotation) is typing.Annotated:
    base, *ranges = typing.get_args(annotation)
    if any(isinstance(each, Kinds) for each in ranges):
      return f"a {next(each.what for each in ranges if isinstance(each, Kinds))}, by kind"
    return f"{shown(base)}, {', '.join(map(str, ranges))}"
  if typing.get_origin(annotation) in (types.UnionType, typing.Union):
    return " or ".join(shown(each) for each in typing.get_args(annotation))
  if typing.get_origin(annotation) is typing.Literal:
    return " or ".join(map(repr, typing.get_args(annotation)))
  if typing.get_origin(annotation) is tuple:
    inner = [each for each in typing.get_args(annotation) if each is not Ellipsis]
    return "list of " + ", ".join(dict.fromkeys(map(shown, inner)))
  if isinstance(annotation, str):
    return annotation
  return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def default(field) -> str:
  if field.default is not dataclasses.MISSING:
    value = field.default
  elif field.default_factory is not dataclasses.MISSING:
    value = field.default_factory()
  else:
    return "required"
  return type(value).__name__ + "()" if dataclasses.is_dataclass(value) else repr(value)


def rows(where: str) -> list[tuple[str, str, str]]:
  """(key, type, default) of each field of 'module:Class'."""
  module, name = where.split(":")
  cls = getattr(importlib.import_module(module), name)
  hints = typing.get_type_hints(cls, include_extras=True)
  return [(f.name, shown(hints[f.name]), default(f)) for f in dataclasses.fields(cls)]


class ConfigFields(SphinxDirective):
  required_arguments = 1

  def run(self):
    table = nodes.table(classes=["config-fields"])
    group = nodes.tgroup(cols=len(HEAD))
    group += [nodes.colspec(colwidth=width) for width in (2, 4, 2)]
    group += nodes.thead("", row(HEAD, literal=False))
    group += nodes.tbody("", *(row(cells) for cells in rows(self.arguments[0])))
    table += group
    return [table]


def row(cells, literal: bool = True):
  entries = []
  for number, cell in enumerate(cells):
    text = nodes.literal(text=cell) if literal and number != 1 else nodes.Text(cell)
    entries.append(nodes.entry("", nodes.paragraph("", "", text)))
  return nodes.row("", *entries)


def setup(app):
  app.add_directive("config-fields", ConfigFields)
  return {"version": "1", "parallel_read_safe": True}
