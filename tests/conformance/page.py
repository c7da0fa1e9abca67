r"""Writes docs/conformance.md from the registries: which parts fit, and the sentence that refuses the
others.

  PYTHONPATH=. python tests/conformance/page.py
"""

import collections
import contextlib
import functools
import pathlib

import cases
import checks

from jaxlm.parts import TABLES
from jaxlm.parts import table as table_of_parts

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "conformance.md"
COMMAND = "PYTHONPATH=. python tests/conformance/page.py"
INTRODUCTION = """# What fits what

Every registered model, objective and form of data is tried with every other, and every part of a decoder, an encoder-decoder and
an H-Net with the rest of it. The smallest configuration of each case is in `tests/conformance/tiny.py`.

A case that is not refused here is accepted when the configuration is read. `make test` traces training, evaluation and decoding of
one case of each model, of each objective and of each part, and counts its FLOPs. `make test-slow` runs all cases: two training
steps, evaluation, a saved and an opened model, and decoding in pieces against the parallel pass.

This page is written by `{command}`; `tests/conformance/test_conformance.py` checks that it is current.
"""


@functools.cache
def outcomes() -> tuple[tuple[cases.Case, str | None], ...]:
  """(case, the sentence that refuses it or None), of every model x objective x data."""
  with library_only():
    return tuple((case, refusal(case)) for case in cases.objectives())


@contextlib.contextmanager
def library_only():
  """Without the parts that other tests have registered, which sentences would name."""
  tables = [table_of_parts(noun).table for noun in TABLES]
  own = [{k: v for k, v in table.items() if not v.startswith("jaxlm.")} for table in tables]
  for table, others in zip(tables, own):
    for kind in others:
      del table[kind]
  try:
    yield
  finally:
    for table, others in zip(tables, own):
      table.update(others)


def refusal(case: cases.Case) -> str | None:
  found = checks.configured(case.config)
  return found if isinstance(found, str) else None


def table(rows, columns, cell) -> list[str]:
  """Lines of a Markdown table; cell: text of (row, column)."""
  head = [
    "| | " + " | ".join(f"`{c}`" for c in columns) + " |",
    "| --- " * (len(columns) + 1) + "|",
  ]
  return head + [
    f"| `{row}` | " + " | ".join(cell(row, column) for column in columns) + " |" for row in rows
  ]


def names(found) -> str:
  return ", ".join(f"`{name}`" for name in found)


def unique(values) -> list:
  return list(dict.fromkeys(values))


def pairs() -> list[str]:
  """Models and objectives, the sentences of those that fit no data, and the data of the others."""
  data, refused = collections.defaultdict(list), collections.defaultdict(dict)
  for case, sentence in outcomes():
    model, objective, name = case.names
    if sentence is None:
      data[model, objective].append(name)
    else:
      refused[model, objective].setdefault(general(sentence, name), []).append(name)
  models, objectives = (unique(case.names[i] for case, _ in outcomes()) for i in (0, 1))

  def cell(model, objective):
    return f"{len(data[model, objective])} data" if data[model, objective] else "-"

  out = ["## Models and objectives", ""]
  out += ["Number of kinds and forms of data on which the pair trains; - where it is refused."]
  out += ["", *table(models, objectives, cell), "", "## Refused pairs", ""]
  for pair in refused:
    if not data[pair]:
      first, *_ = refused[pair]
      out.append(f"- `{pair[0]}`, `{pair[1]}`: {first}")
  out += ["", "## Data of each pair", ""]
  for pair, fitting in data.items():
    if not fitting:
      continue
    out += [f"### {pair[0]}, {pair[1]}", "", f"Trains on {names(fitting)}.", ""]
    out += [f"- {names(found)}: {sentence}" for sentence, found in refused[pair].items()]
    out += [""] if refused[pair] else []
  return out


def general(sentence: str, name: str) -> str:
  """The sentence without the name of the data, so that equal refusals stand together."""
  return sentence.replace(f"'{name.split('/')[0]}'", "...")


def mixers() -> list[str]:
  """Mixers and positions in a decoder."""
  found = {case.names: refusal(case) for case in cases.mixers()}
  sentences = unique(sentence for sentence in found.values() if sentence)
  rows, columns = unique(n[0] for n in found), unique(n[1] for n in found)

  def cell(*pair):
    return str(sentences.index(found[pair]) + 1) if found[pair] else "fits"

  out = ["## Mixers and positions in a decoder", "", *table(rows, columns, cell), ""]
  return out + [f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1)] + [""]


def parts() -> list[str]:
  """Parts of a network, one a line."""
  out = ["## Other parts", "", "| network | part | kind | |", "| --- | --- | --- | --- |"]
  for case in [*cases.embeddings(), *cases.networks()]:
    network, part, kind = case.names
    out.append(f"| {network} | {part} | `{kind}` | {refusal(case) or 'fits'} |")
  return out


def render() -> str:
  lines = [INTRODUCTION.format(command=COMMAND), *pairs(), *mixers(), *parts()]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  PAGE.write_text(render())
