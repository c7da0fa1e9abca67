"""Formulas as MathML, made at build time: a page needs no script and no network to show them."""

import latex2mathml.converter
from docutils import nodes


def converted(latex: str, display: str) -> str:
  return latex2mathml.converter.convert(latex, display=display)


def inline(translator, node) -> None:
  translator.body.append(converted(node.astext(), "inline"))
  raise nodes.SkipNode


def block(translator, node) -> None:
  translator.body.append(f'<div class="math">{converted(node.astext(), "block")}</div>\n')
  raise nodes.SkipNode


def setup(app):
  app.add_html_math_renderer("mathml", (inline, None), (block, None))
  return {"version": "1", "parallel_read_safe": True}
