"""Tables in READMEs that are copied from a table's JSON by a command and not by hand.

Between the two comments stands what `fill` writes:

  <!-- table results/smoke.json: rows=rope,carope; columns=train length as 64 (trained)|2x as 128; paper=small -->
  <!-- claims results/smoke.json -->
  <!-- lines results/pictures.json: key=tree -->
  <!-- verdict carope -->
  <!-- first_run carope -->
  <!-- systems ../ -->
  <!-- end -->

rows: default all with a number. columns: titles, each with another heading behind " as " if it
should have one; default all. size: of a table with several. paper: also the published numbers of the
columns at that size of the paper's model. A path is relative to the page. lines: of
`pictures` -> key -> `lines` in a JSON that a script wrote, as code, with the revisions. verdict, first_run: of a
system; systems: the table of all, with the way from the page to the repository (`overview.py`).
"""

import json
import pathlib
import re
from collections.abc import Mapping

from jaxlm import json_text
from jaxlm.config import ConfigError
from jaxlm.experiments.reproduce import overview
from jaxlm.experiments.verdict import sentence

NOT_MEASURED = "Not measured yet with the present configuration."
MARKED = re.compile(
  r"(<!-- (table|claims|lines|verdict|first_run|systems) ([^\s:]+)(?:: ([^\n]*?))? -->\n).*?(<!-- end -->)",
  re.DOTALL,
)

WHOLE = {
  "verdict": overview.verdict,
  "first_run": overview.first_run,
  "systems": overview.table,
}


def fill(text: str, folder) -> str:
  """The page with what stands between marks made anew. folder: of the page.

  A JSON that is not there leaves one line that says so.
  """

  def made(match) -> str:
    begin, kind, path, options, end = match.groups()
    if kind in WHOLE:
      return begin + "\n".join(WHOLE[kind](path)) + "\n" + end
    file = pathlib.Path(folder) / path
    if not file.exists():
      return f"{begin}{NOT_MEASURED}\n{end}"
    summary = json.loads(file.read_text())
    if kind == "claims":
      lines = claims(summary)
    elif kind == "lines":
      lines = picture(summary, _options(options or "")["key"])
    else:
      lines = table(summary, _options(options or ""))
      lines += ["", f"[All of it, and what it was measured with]({path.removesuffix('.json')}.md)"]
    return begin + "\n".join(lines) + "\n" + end

  return MARKED.sub(made, text)


def table(summary: Mapping, options: Mapping[str, str]) -> list[str]:
  """Lines of Markdown: one per row that has a number, mean ± sample standard deviation over seeds."""
  names = options["rows"].split(",") if "rows" in options else None
  columns = [
    (title.strip(), heading.strip() or title.strip())
    for title, _, heading in (c.partition(" as ") for c in options["columns"].split("|"))
  ] if "columns" in options else [(title, title) for title in summary["columns"]]  # fmt: skip
  for title, _ in columns:
    if title not in summary["columns"]:
      raise ConfigError(f"a README asks for column {title!r}; the table has {summary['columns']}")
  size, theirs = options.get("size", ""), options.get("paper")
  rows = [row for row in summary["rows"] if row["size"] == size]
  if names is not None:
    of_name = {row["row"]: row for row in rows}
    rows = [of_name[name] for name in names if name in of_name]
  rows = [row for row in rows if any("mean" in cell for cell in row["cells"].values())]
  published = [
    title for title, _ in columns if theirs and any(_theirs(row, title, theirs) for row in rows)
  ]
  headings = [
    "",
    *(heading for _, heading in columns),
    *(f"paper, {theirs}: {t}" for t in published),
  ]
  lines = [
    "| " + " | ".join([*headings, "seeds"]) + " |",
    "| --- |" + " ---: |" * len(headings),
  ]
  for row in rows:
    cells = [_ours(row["cells"].get(title, {}), summary["digits"][title]) for title, _ in columns]
    cells += [_theirs(row, title, theirs) for title in published]
    lines.append("| " + " | ".join([row["label"], *cells, str(len(row["seeds"]))]) + " |")
  return lines


def picture(saved: Mapping, key: str) -> list[str]:
  """Lines of one picture in text, as code, and what it was made from."""
  one = saved["pictures"].get(key)
  if one is None:
    return [NOT_MEASURED]
  return [
    "```text",
    *one["lines"],
    "```",
    "",
    f"Drawn at revision {one['revision']} from `{one['run']}`, trained at {', '.join(one['trained'])}.",
  ]


def claims(summary: Mapping) -> list[str]:
  return [
    f"- {c['claim']}{' (' + c['size'] + ')' if c['size'] else ''}: {sentence(c)}"
    for c in summary["claims"]
  ]


def _options(text: str) -> dict[str, str]:
  return {
    name.strip(): value.strip()
    for name, _, value in (part.partition("=") for part in text.split(";") if part.strip())
  }


def _ours(cell: Mapping, digits: int) -> str:
  if "mean" not in cell:
    return "n/a" if "note" in cell else ""
  spread = f" ± {cell['spread']:.{digits}f}" if "spread" in cell else ""
  return f"{json_text.number(cell['mean']):.{digits}f}{spread}"


def _theirs(row: Mapping, title: str, size: str) -> str:
  return " ".join(
    f"{n['value']:g}{'?' if n['remembered'] else ''}"
    for n in row["published"].get(title, [])
    if n["size"] in ("", size)
  )
