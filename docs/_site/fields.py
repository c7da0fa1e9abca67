"""The directive `config-fields`: the keys that a part of a configuration has, as `jaxlm config` explains them.

```{config-fields} jaxlm.layers.positions.carope:CARoPE
```
"""

import dataclasses
import importlib

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from jaxlm.discover.fields import keys

HEAD = ("key", "default", "what")


def rows(where: str) -> list[tuple[str, str, str]]:
  """(key, default, help with type, range and kinds) of each field of 'module:Class'."""
  module, name = where.split(":")
  out = []
  for key in keys(getattr(importlib.import_module(module), name)):
    default = key.default
    if dataclasses.is_dataclass(default):
      default = type(default).__name__ + "()"
    about = "; ".join(filter(None, [key.type, key.allowed, ", ".join(key.kinds)]))
    out.append((key.name, "required" if key.required else str(default), f"{key.help}. {about}"))
  return out


class ConfigFields(SphinxDirective):
  required_arguments = 1

  def run(self):
    table = nodes.table(classes=["config-fields"])
    group = nodes.tgroup(cols=len(HEAD))
    group += [nodes.colspec(colwidth=width) for width in (2, 2, 5)]
    group += nodes.thead("", row(HEAD, literal=False))
    group += nodes.tbody("", *(row(cells) for cells in rows(self.arguments[0])))
    table += group
    return [table]


def row(cells, literal: bool = True):
  entries = []
  for number, cell in enumerate(cells):
    text = [nodes.literal(text=cell)] if literal and number < 2 else inline(cell)
    entries.append(nodes.entry("", nodes.paragraph("", "", *text)))
  return nodes.row("", *entries)


def inline(text: str) -> list[nodes.Node]:
  """Names between backticks are code; a backtick without a partner is a character."""
  parts = text.split("`")
  if len(parts) % 2 == 0:
    return [nodes.Text(text)]
  return [
    nodes.literal(text=part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts) if part
  ]


def setup(app):
  app.add_directive("config-fields", ConfigFields)
  return {"version": "1", "parallel_read_safe": True}
