"""Docstrings are plain text with `code`; here they become reStructuredText.

Paragraphs stay paragraphs, indented blocks and equations become literal blocks, lists stay lists, and
characters that mean something to reStructuredText are escaped.
"""

import re
import textwrap

SPECIAL = re.compile(r"([*_|\\])")
CODE = re.compile(r"`+([^`\n]+(?:\n[^`\n]+)*)`+")


def escaped(text: str) -> str:
  """A paragraph with its code as literals and the rest without markup."""
  parts = CODE.split(text)
  out = ""
  for number, part in enumerate(parts):
    if number % 2:
      # A literal that touches a letter needs an escaped blank between them.
      before = "\\ " if out[-1:].isalnum() else ""
      after = "\\ " if parts[number + 1][:1].isalnum() else ""
      out += f"{before}``{' '.join(part.split())}``{after}"
    else:
      out += SPECIAL.sub(r"\\\1", part)
  return out


def converted(lines: list[str]) -> list[str]:
  out: list[str] = []
  for block in re.split(r"\n\s*\n", textwrap.dedent("\n".join(lines)).strip("\n")):
    rows = block.split("\n")
    if all(row.startswith("  ") for row in rows):
      out += ["::", "", *("  " + row for row in rows)]
    elif rows[0].startswith("- "):
      items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
      out += [f"- {' '.join(escaped(item).split())}" for item in items]
    elif any(row.startswith("  ") for row in rows[1:]):  # a line, and lines that belong to it
      out += ["| " + SPECIAL.sub(r"\\\1", row.replace("`", "")) for row in rows]
    else:
      out += escaped(block).split("\n")
    out.append("")
  return out


def on_docstring(app, what, name, obj, options, lines) -> None:
  lines[:] = converted(lines)


def on_skip(app, what, name, obj, skip, options):
  """Fields of a NamedTuple are in its signature; Python's own words about them say nothing."""
  return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field") else None


def setup(app):
  app.connect("autodoc-skip-member", on_skip)
  app.connect("autodoc-process-docstring", on_docstring)
  return {"version": "1", "parallel_read_safe": True}
