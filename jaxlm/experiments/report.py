"""A table in Markdown, JSON and the terminal: ours beside theirs, the scale on every row, nothing
invented.
"""

import math
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence

from jaxlm import json_text
from jaxlm.experiments import record
from jaxlm.experiments.table import Column, Means, Number, Table
from jaxlm.experiments.verdict import sentence, verdict


def summarise(
  table: Table,
  scale_name: str,
  results: Mapping[tuple[str, str, int], dict],
  failed: Mapping[tuple[str, str, int], str],
  provenance: Mapping,
) -> dict:
  """Everything the renderings print, as plain values. results: {(size, row, seed): result.json}."""
  scale, lines, claims = table.scales[scale_name], [], []
  draft = provenance["revision"].endswith("+")
  stale = [
    {"row": row, "size": size, "seed": seed, "why": why}
    for (size, row, seed), result in results.items()
    if (why := record.stale(result["training"]))
  ]
  if not draft:  # what cannot be made again is listed, without its numbers
    results = current(results)
  for size in scale.sizes:
    means, by_seed = Means(), {}
    for row in table.rows:
      seeds = {seed: r for (s, name, seed), r in results.items() if (s, name) == (size, row.name)}
      cells = {}
      for column in table.columns:
        values = {
          seed: r["numbers"][column.key]
          for seed, r in sorted(seeds.items())
          if column.key in r["numbers"]
        }
        notes = sorted({r["notes"][column.key] for r in seeds.values() if column.key in r["notes"]})
        if values:
          cells[column.title] = _spread(values)
          means[row.name, column.title] = cells[column.title]["mean"]
          for seed, value in values.items():
            by_seed.setdefault(seed, Means())[row.name, column.title] = value
        elif notes:
          cells[column.title] = {"note": "; ".join(notes)}
      error = next((m for (s, name, _), m in failed.items() if (s, name) == (size, row.name)), None)
      runs = {str(seed): _run(table, r) for seed, r in sorted(seeds.items())}
      lines.append(
        {
          "row": row.name,
          "label": row.label or row.name,
          "scale": scale_name,
          "size": size,
          "trained": not row.evaluate_from and not row.computes,
          "seeds": sorted(seeds),
          "cells": cells,
          "published": {
            c.title: [
              _plain(n)
              for n in table.numbers(row.name, c.title)
              if n.size in ("", size) or scale_name != "paper"
            ]
            for c in table.columns
            if table.numbers(row.name, c.title)
          },
          "runs": runs,
        }
        | ({"error": error} if error else {})
      )
    for claim, predicate in table.claims.items():
      claims.append({"claim": claim, "size": size, **verdict(predicate, by_seed, means)})
  return {
    "table": table.name,
    "title": table.title,
    "scale": scale_name,
    "note": scale.note,
    "columns": [c.title for c in table.columns],
    "digits": {c.title: c.digits for c in table.columns},
    "rows": lines,
    "claims": claims,
    "stale": stale,
    "source": table.source,
    "draft": draft,
    **provenance,
  }


def markdown(table: Table, summary: Mapping, figure: str = "") -> str:
  """The summary as a Markdown page. figure: file name of the picture, beside the page."""
  published = [
    c for c in table.columns if any(c.title in row["published"] for row in summary["rows"])
  ]
  header = [
    "row",
    "scale",
    *[f"{c.title}, ours" for c in table.columns],
    *[f"{c.title}, paper" for c in published],
  ]
  notes: list[str] = []
  draft = (
    ["**Draft: made from files that differ from the revision below.**", ""]
    if summary.get("draft")
    else []
  )
  lines = [
    f"# {table.title}",
    "",
    *draft,
    f"Scale `{summary['scale']}`: {summary['note']}",
    "",
    "| " + " | ".join(header) + " |",
    "| --- " * len(header) + "|",
  ]
  for row in summary["rows"]:
    scale = " ".join(filter(None, (summary["scale"], row["size"])))
    cells = [_ours(row, column, notes) for column in table.columns]
    theirs = [
      "<br>".join(_theirs(n, c) for n in row["published"].get(c.title, ())) for c in published
    ]
    lines.append(
      "| "
      + " | ".join([row["label"] + (" (failed)" if "error" in row else ""), scale, *cells, *theirs])
      + " |"
    )
  lines += [""]
  counts = sorted({len(row["seeds"]) for row in summary["rows"] if row["seeds"]})
  if counts:
    lines += [
      f"Seeds per row: {' or '.join(map(str, counts))}. "
      + (
        "Mean ± sample standard deviation over seeds; every seed's value is in the JSON file."
        if counts[-1] > 1
        else "One seed says nothing about spread."
      )
    ]
  if published and summary["scale"] != "paper":
    lines += [
      "The paper's numbers are from its own scale and data; only the claims below are compared at this one."
    ]
  lines += [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
  if any(
    n["remembered"] for row in summary["rows"] for ns in row["published"].values() for n in ns
  ):
    lines += ["A number with `?` is from memory of the literature and was not looked up."]
  lines += [f"Source: {table.source}"] if table.source else []
  lines += [
    f"Failed: {row['label']} {row['size']}: {row['error']}"
    for row in summary["rows"]
    if "error" in row
  ]
  if summary["claims"]:
    lines += ["", "## Claims at this scale", ""]
    lines += [
      f"- {c['claim']}{' (' + c['size'] + ')' if c['size'] else ''}: {sentence(c)}"
      for c in summary["claims"]
    ]
    lines += [
      "",
      "The margin is how far a claim is from failing, seed by seed. Shown: the 95 % interval of its mean (Student's t, 3 seeds "
      "or more) lies above 0; contradicted: below 0 (docs/evidence.md).",
    ]
  if figure:
    lines += ["", f"![{table.figure.title}]({figure})"]
  lines += [""] + [
    f"Stale: {each['row']} {each['size']} seed {each['seed']}: {each['why']}"
    for each in summary["stale"]
  ]
  lines += ["", "## Made by", "", *_makers(summary["rows"]), ""]
  lines += [
    f"This page: `{summary['command']}`, {summary['date']}, revision {summary['revision']}, Python {summary['python']}, "
    + ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
    + ".",
    "",
  ]
  return "\n".join(_breaks(lines))


def write(table: Table, summary: Mapping, stem) -> list[pathlib.Path]:
  """`stem`.json, `stem`.md and, if there is a figure that `stem`.png holds, a link to it."""
  stem = pathlib.Path(stem)
  stem.parent.mkdir(parents=True, exist_ok=True)
  png = stem.with_name(stem.name + ".png")
  page, data = stem.with_name(stem.name + ".md"), stem.with_name(stem.name + ".json")
  data.write_text(_compact(json_text.dumps(summary, indent=1)) + "\n")
  page.write_text(markdown(table, summary, png.name if png.exists() else ""))
  return [page, data]


def show(table: Table, summary: Mapping) -> None:
  """The table in the terminal."""
  from rich.console import Console
  from rich.table import Table as RichTable

  published = [
    c for c in table.columns if any(c.title in row["published"] for row in summary["rows"])
  ]
  grid = RichTable(title=table.title, caption=f"{summary['scale']}: {summary['note']}")
  grid.add_column("row")
  if any(row["size"] for row in summary["rows"]):
    grid.add_column("size")
  for column in table.columns:
    grid.add_column(column.title, justify="right")
  for column in published:
    grid.add_column(f"paper, {column.title}", justify="right", style="dim")
  notes: list[str] = []
  for row in summary["rows"]:
    cells = [row["label"] + (" (failed)" if "error" in row else "")]
    cells += [row["size"]] if any(r["size"] for r in summary["rows"]) else []
    cells += [_ours(row, column, notes) for column in table.columns]
    cells += [
      "\n".join(_theirs(n, c) for n in row["published"].get(c.title, ())) for c in published
    ]
    grid.add_row(*(cell.replace("[", r"\[") for cell in cells))
  console = Console()
  console.print(grid)
  for i, note in enumerate(notes, 1):
    console.print(f"[{i}] {note}", markup=False)
  for claim in summary["claims"]:
    console.print(f"{claim['claim']}: {sentence(claim).replace('**', '')}", markup=False)


def _ours(row: Mapping, column: Column, notes: list[str]) -> str:
  cell = row["cells"].get(column.title)
  if cell is None:
    return ""
  if "note" in cell:
    if cell["note"] not in notes:
      notes.append(cell["note"])
    return f"n/a [{notes.index(cell['note']) + 1}]"
  spread = f" ± {cell['spread']:.{column.digits}f}" if "spread" in cell else ""
  return f"{cell['mean']:.{column.digits}f}{spread}"


def _theirs(number: Mapping, column: Column) -> str:
  mark = "?" if number["remembered"] else ""
  return f"{number['value']:.{column.digits}f}{mark}" + (
    f" ({number['size']})" if number["size"] else ""
  )


def current(results: Mapping[tuple, dict]) -> dict:
  """The results whose training revision is in the history of HEAD, without uncommitted changes."""
  return {key: r for key, r in results.items() if not record.stale(r["training"])}


def _run(table: Table, result: Mapping) -> dict:
  """What the report keeps of one measured seed beside its numbers."""
  out = {name: result[name] for name in ("identity", "training", "evaluation")}
  if result.get("trace"):
    out["trace"] = result["trace"]
  if table.figure:
    names = (table.figure.curve, *table.figure.references)
    curves = {name: result["curves"][name] for name in names if result["curves"].get(name)}
    out |= {"curves": {k: [_rounded(x) for x in v] for k, v in curves.items()}} if curves else {}
  return out


def _rounded(value):
  return None if value is None else round(float(value), 4)


def _makers(rows: Sequence[Mapping]) -> list[str]:
  """A table: each row's revisions, machine and cost of training and of evaluation."""
  lines = [
    "| row | seed | trained at | evaluated at | machine | training, wall s | core s | evaluation, wall s | core s |",
    "| --- | ---: | --- | --- | --- | ---: | ---: | ---: | ---: |",
  ]
  for row in rows:
    for seed, run in row["runs"].items():
      training, evaluation = run["training"], run["evaluation"]
      revisions = ", ".join(dict.fromkeys(each["revision"] for each in training)) or "?"
      cost = [
        *(record.total(training, key) for key in ("wall_s", "core_s")),
        evaluation["wall_s"],
        evaluation["core_s"],
      ]
      cells = [
        " ".join(filter(None, (row["label"], row["size"])))
        + ("" if row["trained"] else " (trains nothing)"),
        seed,
        revisions,
        evaluation["revision"],
        machine(evaluation),
        *("?" if value is None else f"{value:.0f}" for value in cost),
      ]
      lines.append("| " + " | ".join(cells) + " |")
  return lines


def machine(made: Mapping) -> str:
  """Device, CPU model and cores of a record, as far as they are known."""
  cores = f"{made['cores']} cores" if made.get("cores") else ""
  return ", ".join(filter(None, (made["device"], made.get("cpu"), cores)))


def _compact(text: str) -> str:
  """JSON with every list of plain numbers on one line."""
  return re.sub(
    r"\[\s+((?:[-\d.eE+]+,?\s+)+)\]", lambda m: "[" + " ".join(m[1].split()) + "]", text
  )


def _spread(of_seed: Mapping[int, float]) -> dict:
  """mean, num_seeds, values: {seed: value}, and from two seeds on spread, the sample standard
  deviation.
  """
  values = list(of_seed.values())
  finite = [v for v in values if math.isfinite(v)]
  out = {
    "mean": statistics.fmean(values) if len(finite) == len(values) else math.inf,
    "num_seeds": len(values),
    "values": {str(seed): value for seed, value in of_seed.items()},
  }
  return out | (
    {"spread": statistics.stdev(values)} if len(values) > 1 and len(finite) == len(values) else {}
  )


def _plain(number: Number) -> dict:
  return {
    "value": number.value,
    "source": number.source,
    "size": number.size,
    "remembered": number.remembered,
  }


def _breaks(lines: Sequence[str]) -> list[str]:
  """Adjacent sentences become Markdown lines of their own; tables, lists, headings and code stay as
  they are.
  """

  def prose(line):
    return bool(line) and not line.startswith(("|", "-", "#", " ", "!"))

  return [
    line + "  " if prose(line) and i + 1 < len(lines) and prose(lines[i + 1]) else line
    for i, line in enumerate(lines)
  ]
