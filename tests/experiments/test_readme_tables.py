"""No number in a README, or on a page that is filled from JSON, that is not in the JSON, and no JSON, page
or picture of a revision that cannot be checked out."""

import functools
import importlib.util
import json
import pathlib
import re

import pytest

from jaxlm.config import ConfigError
from jaxlm.experiments import record
from jaxlm.experiments.reproduce import overview, pages, papers_table
from jaxlm.experiments.reproduce.command import declared
from jaxlm.experiments.reproduce.readme import MARKED, fill, table

ROOT = pathlib.Path(__file__).parents[2]
READMES = [page for pattern in pages.FILLED for page in sorted(ROOT.glob(pattern))]
RESULTS = sorted(ROOT.glob("experiments/*/results/*"))
OLD_BENCHMARK_TABLES = 17  # measured before their numbers were kept; may only become fewer
CELL = re.compile(r"[*~ ]*[-+]?\d+(\.\d+)?( ?%| ± [\d.]+| [a-zA-Z]+)?[* ]*")


def prose(page: pathlib.Path) -> str:
  """The page without code and without what is copied from JSON."""
  text = MARKED.sub("", page.read_text())
  text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
  return re.sub(r"`[^`]*`|\]\([^)]*\)|^ {4}.*$", "", text, flags=re.MULTILINE)


def numbers(value) -> set[float]:
  if isinstance(value, dict):
    return set().union(*map(numbers, value.values())) if value else set()
  if isinstance(value, list):
    return set().union(*map(numbers, value)) if value else set()
  return {float(value)} if isinstance(value, (int, float)) else set()


@functools.cache
def of_page(page: pathlib.Path) -> set[float]:
  """All numbers of the cells, the papers' among them, in the JSON of the page's paper."""
  of_paper = page.parent.name in ("systems", "docs")
  folder = ROOT / "experiments" / page.stem if of_paper else page.parent
  out = set()
  for path in folder.glob("results/*.json"):
    saved = json.loads(path.read_text())
    rows = saved.get("rows", []) if isinstance(saved, dict) else []
    out |= numbers([[row["cells"], row["published"]] for row in rows] or saved)
  return out


def name(path):
  return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", READMES, ids=name)
def test_tables_say_what_their_json_says(page):
  text = page.read_text()
  assert fill(text, page.parent) == text, "run: jaxlm reproduce --scale smoke --report"
  begun = re.findall(r"<!-- (?:table|claims|lines|verdict|first_run|systems) ", text)
  assert len(MARKED.findall(text)) == len(begun)


@pytest.mark.parametrize("page", READMES, ids=name)
def test_a_table_written_by_hand_holds_no_measurement(page):
  for line in prose(page).splitlines():
    cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
    assert not [c for c in cells if CELL.fullmatch(c) and "." in c], line


@pytest.mark.parametrize("page", READMES, ids=name)
def test_a_number_of_three_decimals_in_the_text_is_in_a_json(page):
  for found in re.findall(r"(?<![\d.])\d+\.\d{3,}(?![\d.])", prose(page)):
    digits = len(found.split(".")[1])
    if digits > 4:  # arXiv 2507.23083
      continue
    assert any(round(x, digits) == float(found) for x in of_page(page)), found


def test_reproduction_md_is_what_the_tables_json_say():
  papers = pages.collect(declared()[0], ROOT)
  assert {paper["name"] for paper in papers} == set(pages.PAPERS)
  page = pages.markdown(papers)
  assert page == (ROOT / "REPRODUCTION.md").read_text(), (
    "run: jaxlm reproduce --scale smoke --report"
  )


def test_every_result_was_made_at_a_revision_that_can_be_checked_out():
  if not record.is_ancestor("HEAD"):
    pytest.skip("not a git repository")
  for path in RESULTS:
    if path.suffix == ".json":
      text = path.read_text()
      saved = json.loads(text)
      assert not saved.get("draft"), path
      made = [
        run["training"] for row in saved.get("rows", []) for run in row.get("runs", {}).values()
      ]
      for revision in set(re.findall(r'"revision": "([^"]*)"', text)):
        assert not record.stale([{"revision": revision}]), f"{path.name}: {revision}"
      assert all(made), f"{path.name}: a row without a record of its training"


def test_first_runs_were_measured_with_the_commands_that_the_pages_show():
  kept = json.loads((ROOT / overview.COSTS).read_text())
  for system in overview.systems():
    if found := kept.get(system.name):
      assert found["command"] == system.command, "run: python bench/first_runs.py"
      assert found["cpu"] and found["date"] and "load" in found and "load_after" in found
      if record.is_ancestor("HEAD"):
        assert not record.stale([found]), f"{system.name}: {found['revision']}"


def test_every_picture_and_page_has_a_json_or_says_its_revision():
  stems = [path.stem for path in RESULTS if path.suffix == ".json"]
  for path in RESULTS:
    page = path.with_suffix(".md")
    revision = re.search(r"revision (\w+)", page.read_text()) if page.exists() else None
    stale = revision and record.is_ancestor("HEAD") and not record.is_ancestor(revision[1])
    assert any(path.stem.startswith(stem) for stem in stems) or (revision and not stale), path.name


def test_a_benchmark_s_table_is_its_json_and_no_other_is_added():
  spec = importlib.util.spec_from_file_location("keep", ROOT / "bench" / "keep.py")
  keep = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(keep)
  page = keep.PAGE.read_text()
  assert keep.fill(page) == page, "run: python bench/keep.py --fill"
  for path in keep.MEASURED.glob("*.json"):
    saved = json.loads(path.read_text())
    assert saved["cpu"] and saved["date"] and "load" in saved and "load_after" in saved, path
  assert len(keep.tables(keep.MARKED.sub("", page))) <= OLD_BENCHMARK_TABLES


def test_a_copied_table_has_the_digits_and_headings_that_were_asked_for():
  row = dict(row="a", label="A", size="", seeds=[0, 1], published={"x": [dict(value=2.5, size="L", remembered=True)]})  # fmt: skip
  row["cells"] = {"x": {"mean": 1.234, "spread": 0.5}, "y": {"note": "no"}}
  summary = dict(rows=[row], columns=["x", "y"], digits={"x": 2, "y": 1})
  assert table(summary, {"columns": "x as the x|y", "paper": "L"}) == [
    "|  | the x | y | paper, L: x | seeds |",
    "| --- | ---: | ---: | ---: | ---: |",
    "| A | 1.23 ± 0.50 | n/a | 2.5? | 2 |",
  ]


def test_a_picture_in_text_is_copied_as_code_with_its_revisions(tmp_path):
  one = dict(
    lines=["'a' 0", "└─ 'b' 1"],
    run="decoding-pair/smoke/target/seed0",
    trained=["abc"],
    revision="def",
  )
  (tmp_path / "p.json").write_text(json.dumps(dict(pictures=dict(tree=one))))
  page = "<!-- lines p.json: key=tree -->\nold\n<!-- end -->"
  assert fill(page, tmp_path).splitlines()[1:-1] == [
    "```text",
    "'a' 0",
    "└─ 'b' 1",
    "```",
    "",
    "Drawn at revision def from `decoding-pair/smoke/target/seed0`, trained at abc.",
  ]


def test_the_table_of_all_papers_says_what_their_json_and_the_queue_say():
  page = ROOT / "experiments" / "README.md"
  items = declared()[0]
  papers = pages.collect(items, ROOT)
  text = page.read_text()
  assert papers_table.fill(text, papers, items, ROOT) == text, (
    "run: jaxlm reproduce --scale smoke --report"
  )
  assert {name for _, _, name, _ in papers_table.CELL.findall(text)} >= {"attnsink", "biasprompt"}
  with pytest.raises(ConfigError, match="has no table; did you mean 'attnsink'"):
    papers_table.fill("<!-- verdict attnsnk --><!-- end -->", papers, items, ROOT)
