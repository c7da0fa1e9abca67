"""The reports of everything that was measured: each table's page, REPRODUCTION.md and one page of
HTML.

A table's JSON in experiments/<paper>/results is the record. What is finished in the work folders is
added to it, seed by seed; what was measured under another configuration than the present one is
dropped; claims are judged anew.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

from jaxlm import json_text
from jaxlm.config import ConfigError
from jaxlm.experiments import figure, record, report, runner
from jaxlm.experiments.command import load
from jaxlm.experiments.reproduce import papers_table, queue, readme
from jaxlm.experiments.table import Means, Table
from jaxlm.experiments.verdict import sentence

ROOT = pathlib.Path(__file__).resolve().parents[3]
SCALES = ("smoke", "small", "paper")
#: Pages with tables that are copied from JSON.
FILLED = (
  "README.md",
  "experiments/*/README.md",
  "experiments/*/NOTES.md",
  "docs/systems/*.md",
  "docs/decoding.md",
)
PAPERS = {
  "carope": "CARoPE (arXiv 2507.23083)",
  "ilm": "Insertion language models (arXiv 2505.05755)",
  "hnet": "H-Net (arXiv 2507.07955)",
  "mrt5": "MrT5 (arXiv 2410.20771)",
  "lact": "LaCT (arXiv 2505.23884)",
  "lexinvariant": "Lexinvariant language models (arXiv 2305.16349)",
  "cross": "Parts of one paper in the model of another (ours)",
  # Interpretability
  "attnsink": "When attention sinks emerge (arXiv 2410.10781)",
  "zerotuning": "ZeroTuning (arXiv 2505.11739)",
  "activedormant": "Active-dormant attention heads (arXiv 2410.13835)",
  "icl_linear": "Linear models in context (arXiv 2306.09927)",
  "scansnap": "Scan and Snap (arXiv 2305.16380)",
  "actattack": "Attacks on activations (arXiv 2312.02780)",
  "deconattn": "Deconstructing attention (arXiv 2510.11602)",
  "grains": "GrAInS (arXiv 2507.18043)",
  "reagent": "ReAGent (arXiv 2402.00794)",
  "functok": "Function tokens (arXiv 2510.08203)",
  "avsr_sink": "Decorrelation from the first token (arXiv 2510.22603)",
  "biasprompt": "Bias after prompting (arXiv 2509.08146)",
  "decoding": "Decoding: twelve papers (experiments/README.md)",
}


def require_clean(draft: bool) -> None:
  """ConfigError if tracked files differ from the revision and the report is no draft."""
  revision = runner.provenance()["revision"]
  if revision.endswith("+") and not draft:
    raise ConfigError(
      f"the files differ from revision {revision.rstrip('+')}, so nobody could make these reports again; commit them first, "
      f"or give --draft, which marks the reports, or --no_report"
    )


def write(
  items: Sequence[queue.Item], runs, scale: str, *, into, declared: Sequence[queue.Item]
) -> list[pathlib.Path]:
  """Writes the reports of the items' tables that have a result at `scale`, then the overall pages of
  all that are declared."""
  into, written = pathlib.Path(into), []
  for item in {item.script: item for item in items}.values():
    table = load(str(ROOT / item.script))
    if scale not in table.scales:
      continue
    stem = into / item.stem(scale)
    found = measured(table, scale, stem, queue.workdir(runs, table, scale))
    if found:
      written += write_table(table, scale, found, stem)
  return [*written, *write_readmes(into), *write_overview(declared, into)]


def write_readmes(into) -> list[pathlib.Path]:
  """The marked tables of all pages that have some, from the tables' JSON. Returns the pages that
  changed."""
  pages = [page for pattern in FILLED for page in sorted(into.glob(pattern))]
  texts = {page: page.read_text() for page in pages if page.exists()}
  changed = {
    page: new for page, text in texts.items() if (new := readme.fill(text, page.parent)) != text
  }
  for page, new in changed.items():
    page.write_text(new)
  return list(changed)


def write_table(table: Table, scale: str, results: Mapping, stem) -> list[pathlib.Path]:
  """The page, the JSON and the picture of one table; nothing if they say the same already."""
  stem = pathlib.Path(stem)
  stem.parent.mkdir(parents=True, exist_ok=True)
  summary = report.summarise(table, scale, results, {}, runner.provenance())
  if _same(summary, stem.with_name(stem.name + ".json")):
    return []
  pictures = []
  if table.figure:
    kept = results if summary["draft"] else report.current(results)
    drawable = {key: r for key, r in kept.items() if r["curves"].get(table.figure.curve)}
    for size in table.scales[scale].sizes:
      several = size and len(table.scales[scale].sizes) > 1
      path = stem.with_name(stem.name + (f"-{size}" if several else "") + ".png")
      if figure.draw(table, drawable, path, size=size, scale=scale):
        pictures.append(path)
  return [*report.write(table, summary, stem), *pictures]


def _same(summary: Mapping, path: pathlib.Path) -> bool:
  """Whether the JSON there differs in nothing but where and when the page was made."""
  if not path.exists():
    return False
  about_the_page = runner.provenance().keys()

  def said(saved):
    return {k: v for k, v in saved.items() if k not in about_the_page}

  return said(json.loads(json_text.dumps(summary))) == said(json.loads(path.read_text()))


def measured(table: Table, scale: str, stem, workdir) -> dict[tuple[str, str, int], dict]:
  """{(size, row, seed): result}: those in the table's JSON, replaced and joined by those in the
  work folder. Results without an identity (measured before identities were kept) stay until the
  table has a row of today."""

  def of_today(results):
    return {
      key: result
      for key, result in results.items()
      if result["identity"] == identity(table, scale, *key)
    }

  recorded = from_json(table, scale, stem)
  found = of_today(recorded) | of_today(runner.results(table, scale, workdir))
  return found or {key: r for key, r in recorded.items() if r["identity"] is None}


def recorded(table: Table, scale: str, stem) -> set[tuple[str, str, int]]:
  """(size, row, seed) of the results in the table's JSON that are of today's configuration and of
  a revision in the history, without uncommitted changes. A row whose text is not here is not one."""
  found = set()
  for key, result in report.current(from_json(table, scale, stem)).items():
    with contextlib.suppress(ConfigError):
      if result["identity"] == identity(table, scale, *key):
        found.add(key)
  return found


def identity(table: Table, scale: str, size: str, row: str, seed: int) -> str:
  """Of the configuration that this row has now."""
  return runner.identity_of(table, table.row(row), table.scales[scale], size, seed)


def from_json(table: Table, scale: str, stem) -> dict[tuple[str, str, int], dict]:
  """{(size, row, seed): result} of a table's JSON; {} if there is none."""
  path = pathlib.Path(stem).with_name(pathlib.Path(stem).name + ".json")
  if not path.exists():
    return {}
  keys, out = {column.title: column.key for column in table.columns}, {}
  for line in json.loads(path.read_text())["rows"]:
    if line["row"] not in [row.name for row in table.rows]:
      continue
    for seed, run in line.get("runs", {}).items():
      numbers, notes = {}, {}
      for title, cell in line["cells"].items():
        if title in keys and seed in cell.get("values", {}):
          numbers[keys[title]] = json_text.number(cell["values"][seed])
        elif title in keys and "note" in cell:
          notes[keys[title]] = cell["note"]
      declared = table.row(line["row"])
      source = table.row(declared.evaluate_from) if declared.evaluate_from else declared
      config = runner.resolve(table, source, table.scales[scale], line["size"], int(seed))
      out[line["size"], line["row"], int(seed)] = (
        {"curves": {}} | run | {"numbers": numbers, "notes": notes, "config": config}
      )
  return out


def write_overview(items: Sequence[queue.Item], into) -> list[pathlib.Path]:
  """REPRODUCTION.md and docs/reproduction.html, from the tables' JSON."""
  into = pathlib.Path(into)
  papers = collect(items, into)
  page = into / "REPRODUCTION.md"
  page.write_text(markdown(papers))
  table = into / "experiments" / "README.md"
  if table.exists():
    table.write_text(papers_table.fill(table.read_text(), papers, items, ROOT))
  web = into / "docs" / "reproduction.html"
  web.parent.mkdir(parents=True, exist_ok=True)
  web.write_text(html(papers))
  return [page, web]


def collect(items: Sequence[queue.Item], into) -> list[dict]:
  """Per paper its tables, per table its claims with a verdict at each scale."""
  papers: dict[str, dict] = {}
  for item in {item.script: item for item in items}.values():
    name = item.name.split("/")[0]
    table = load(str(ROOT / item.script))
    summaries = {}
    for scale in SCALES:
      path = pathlib.Path(into) / item.stem(scale)
      path = path.with_name(path.name + ".json")
      if scale in table.scales and path.exists():
        summaries[scale] = json.loads(path.read_text())
    paper = papers.setdefault(name, {"name": name, "title": PAPERS.get(name, name), "tables": []})
    paper["tables"].append(_table(item, table, summaries))
  return [papers[name] for name in dict.fromkeys([*PAPERS, *papers]) if name in papers]


def _table(item: queue.Item, table: Table, summaries: Mapping[str, dict]) -> dict:
  claims = []
  sizes = {c["size"] for s in summaries.values() for c in s["claims"]} or {""}
  for claim, predicate in table.claims.items():
    for size in sorted(sizes):
      found = {
        scale: next((c for c in s["claims"] if (c["claim"], c["size"]) == (claim, size)), None)
        for scale, s in summaries.items()
      }
      smoke = summaries.get("smoke", {})
      cells = cells_of(predicate, smoke, size)
      claims.append(
        {
          "claim": claim,
          "size": size,
          "verdicts": {scale: _verdict(table, scale, found.get(scale)) for scale in SCALES},
          "sentence": sentence(found["smoke"]).replace("**", "") if found.get("smoke") else "",
          "ours": [_cell(smoke, cell, size, _ours) for cell in cells],
          "paper": [text for cell in cells if (text := _cell(smoke, cell, size, _theirs))],
        }
      )
  smoke = summaries.get("smoke")
  stem = item.stem("smoke")
  runs = [run for row in smoke["rows"] for run in row["runs"].values()] if smoke else []
  trained = sorted({s["revision"] for run in runs for s in run["training"]})
  commands = list(dict.fromkeys(s["command"] for run in runs for s in run["training"]))
  return {
    "name": item.name,
    "title": table.title,
    "needs": item.needs,
    "script": item.script,
    "claims": claims,
    "note": table.scales["smoke"].note if "smoke" in table.scales else "",
    "page": f"{stem}.md" if smoke else "",
    "picture": f"{stem}.png" if smoke and (ROOT / f"{stem}.png").exists() else "",
    "seeds": sorted({len(row["seeds"]) for row in smoke["rows"] if row["seeds"]}) if smoke else [],
    "missing": [row["label"] for row in smoke["rows"] if not row["seeds"]] if smoke else [],
    "stale": len(smoke["stale"]) if smoke else 0,
    "revisions": trained,
    "commands": commands[:3],
    "machines": sorted({report.machine(s) for run in runs for s in run["training"]}),
    "core_minutes": _core_minutes(smoke["rows"]) if smoke else None,
    "draft": bool(smoke and smoke["draft"]),
    "run": f"jaxlm reproduce --scale smoke --only {item.name}",
  }


def cells_of(predicate: Callable, summary: Mapping, size: str) -> list[tuple[str, str]]:
  """The (row, column) cells that a claim reads, in its order."""
  asked: list[tuple[str, str]] = []

  class Listening(Means):
    def __getitem__(self, key):
      asked.append(key)
      return super().__getitem__(key)

    def get(self, key, default=None):
      asked.append(key)
      return super().get(key, default)

  means = Listening()
  for row in summary.get("rows", []):
    for title, cell in row["cells"].items():
      if row["size"] == size and "mean" in cell:
        means[row["row"], title] = json_text.number(cell["mean"])
  try:
    predicate(means)
  except (KeyError, ZeroDivisionError, OverflowError, ValueError):
    pass
  return list(dict.fromkeys(asked))


def _cell(summary: Mapping, cell: tuple[str, str], size: str, text: Callable) -> str:
  for row in summary.get("rows", []):
    if (row["row"], row["size"]) == (cell[0], size):
      return text(row, cell[1])
  return ""


def _ours(row: Mapping, title: str) -> str:
  cell = row["cells"].get(title, {})
  if "mean" not in cell:
    return f"{row['label']}, {title}: not measured"
  spread = f" ± {cell['spread']:.3g}" if "spread" in cell else ""
  return f"{row['label']}, {title}: {json_text.number(cell['mean']):.4g}{spread}"


def _theirs(row: Mapping, title: str) -> str:
  found = [
    f"{n['value']:g}{'?' if n['remembered'] else ''}{' (' + n['size'] + ')' if n['size'] else ''}"
    for n in row["published"].get(title, [])
  ]
  return f"{row['label']}, {title}: {', '.join(found)}" if found else ""


def _verdict(table: Table, scale: str, found: Mapping | None) -> str:
  if scale not in table.scales:
    return "no such scale"
  if found is None:
    return "not run"
  seeds = f"{len(found['seeds'])} seed{'s' if len(found['seeds']) != 1 else ''}"
  if "interval" in found:
    low, high = found["interval"]
    return f"{found['verdict']} ({found['mean']:+.3g}; {low:+.3g} to {high:+.3g}; {seeds})"
  if "mean" in found:
    return f"{found['verdict']} ({found['mean']:+.3g}; {seeds})"
  return found["verdict"]


def _core_minutes(rows: Sequence[Mapping]) -> float | None:
  """Core time of all training and evaluation that is known; a row that trains nothing counts its
  evaluation."""
  parts = [
    record.total([*(run["training"] if row["trained"] else ()), run["evaluation"]], "core_s")
    for row in rows
    for run in row["runs"].values()
  ]
  known = [part for part in parts if part is not None]
  return round(sum(known) / 60, 1) if known else None


def markdown(papers: Sequence[Mapping]) -> str:
  """REPRODUCTION.md: the claims first, then what each table was made with."""
  count: dict[str, int] = {}
  for paper in papers:
    for table in paper["tables"]:
      for claim in table["claims"]:
        word = claim["verdicts"]["smoke"].split(" (")[0]
        count[word] = count.get(word, 0) + 1
  lines = [
    "# Reproduction",
    "",
    "Written by `jaxlm reproduce`; do not edit. What the verdicts mean: [docs/evidence.md](docs/evidence.md). In brackets: the mean",
    "margin by which a claim holds, its 95 % interval over paired seeds, and their number. The same with pictures and the cells that each claim",
    "compares: docs/reproduction.html.",
    "",
    "Claims at scale `smoke`: "
    + ", ".join(f"{n} {word}" for word, n in sorted(count.items()))
    + ".",
  ]
  for paper in papers:
    lines += [
      "",
      f"## {paper['title']}",
      "",
      "| table | claim | smoke | small | paper |",
      "| --- | --- | --- | --- | --- |",
    ]
    for table in paper["tables"]:
      for claim in table["claims"]:
        size = f" ({claim['size']})" if claim["size"] else ""
        verdicts = [claim["verdicts"][scale] for scale in SCALES]
        name = f"[{table['name']}]({table['page']})" if table["page"] else f"`{table['name']}`"
        lines.append("| " + " | ".join([name, claim["claim"] + size, *verdicts]) + " |")
  lines += ["", "## What was run, and what was not", ""]
  for paper in papers:
    for table in paper["tables"]:
      lines.append(f"- `{table['name']}`: " + "; ".join(state(table)) + ".")
  return "\n".join(lines) + "\n"


def state(table: Mapping) -> list[str]:
  """What stands behind a table at smoke, in phrases."""
  if not table["page"]:
    need = f" needs {table['needs']}" if table["needs"] else ""
    return [f"not run at smoke{need}"]
  out = [f"seeds {' or '.join(map(str, table['seeds'])) or 'none'}"]
  if table["revisions"]:
    out.append("trained at " + ", ".join(table["revisions"]))
  if table["missing"]:
    out.append("not run: " + ", ".join(table["missing"]))
  if table["stale"]:
    out.append(f"{table['stale']} stale rows, without numbers")
  if table["draft"]:
    out.append("a draft")
  return out


def html(papers: Sequence[Mapping]) -> str:
  """One page; needs jinja2 (pip install 'jaxlm[report]')."""
  try:
    import jinja2
  except ImportError:
    raise ConfigError("the HTML report needs jinja2: pip install 'jaxlm[report]'") from None
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxlm.experiments.reproduce"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template("reproduction.html").render(
    papers=papers, scales=SCALES, state=state, revision=runner.provenance()["revision"]
  )
