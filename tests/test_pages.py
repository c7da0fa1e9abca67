"""The pages of docs/ and README.md: their links lead somewhere, every page is in the contents, their code is code, and their
commands name configurations that build. `tests/docs/` runs them.
"""

import importlib
import pathlib
import re
import shlex

import pytest

from jaxlm.commands.flags import parse_flags
from jaxlm.training.config import load_config, run_config

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
  ROOT / name
  for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "REPRODUCTION.md", "bench/RESULTS.md", "jaxlm/kernels/README.md")
] + sorted(path for at in (DOCS, ROOT / "experiments", ROOT / "tpu") for path in at.rglob("*.md") if "_build" not in path.parts)  # fmt: skip
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def name(path):
  return path.relative_to(ROOT).as_posix()


def anchors(page: pathlib.Path) -> set[str]:
  """Of the headings, as GitHub and MyST make them."""
  heads = re.findall(r"^#+ (.+)$", CODE.sub(lambda m: m[0].strip("`"), page.read_text()), re.M)
  return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
  for link in LINK.findall(CODE.sub("", page.read_text())):
    if re.match(r"[a-z]+:", link):
      continue
    file, _, anchor = link.partition("#")
    target = (page.parent / file).resolve() if file else page
    assert target.exists(), link
    assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def test_every_page_is_in_the_contents():
  listed = set()
  for page in DOCS.rglob("*.md"):
    for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
      for line in block.splitlines():
        if line and not line.startswith(":"):
          listed |= set(page.parent.glob(f"{line.rstrip('?')}.md"))
  pages = {page for page in DOCS.rglob("*.md") if "_build" not in page.parts}
  assert sorted(map(name, pages - listed)) == ["docs/index.md"]


def blocks(page: pathlib.Path, kind: str) -> list[str]:
  return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_a_page_is_python(page):
  for block in [*blocks(page, "python"), *blocks(page, r"\{code-cell\} python")]:
    compile(block, name(page), "exec")


def commands(page: pathlib.Path) -> list[list[str]]:
  """The words of every `jaxlm ...` in the page's shell blocks and its inline code."""
  text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
  lines = [line.strip() for line in text.splitlines() if line.startswith("jaxlm ")]
  return [shlex.split(line, comments=True) for line in lines]


TRAINED = [
  (page, words[2:])
  for page in PAGES
  for words in commands(page)
  if words[1] == "train" and "FILE" not in " ".join(words) and not page.is_relative_to(ROOT / "tpu")
]


@pytest.mark.parametrize(
  "page, words", TRAINED, ids=[f"{name(page)}-{i}" for i, (page, _) in enumerate(TRAINED)]
)
def test_a_training_command_names_a_configuration_that_builds(page, words, monkeypatch):
  monkeypatch.chdir(ROOT)
  spec, overrides, rest = parse_flags(words)
  if not spec.startswith("configs/"):
    pytest.skip("a configuration of another command of the page")
  overrides.pop("train.init_from", None)
  assert run_config(load_config(spec, overrides))
  assert any(word.startswith("--workdir=") for word in rest)


@pytest.mark.parametrize("figure", ["headline", "architecture"])
def test_a_picture_is_of_what_it_says(figure, monkeypatch):
  monkeypatch.syspath_prepend(str(DOCS / "figures"))
  script = importlib.import_module(figure)
  assert script.digest() in script.PICTURE.read_text(), f"run: python docs/figures/{figure}.py"


def test_main_claims_are_claims_of_their_tables():
  from jaxlm.experiments.command import load
  from jaxlm.experiments.reproduce.command import declared
  from jaxlm.experiments.reproduce.overview import systems

  scripts = {item.name: item.script for item in declared()[0]}
  for system in systems():
    assert (DOCS / "systems" / f"{system.name}.md").exists()
    for table, claim in system.claims:
      assert claim in load(str(ROOT / scripts[table])).claims, claim


def test_a_word_for_several_claims():
  from jaxlm.experiments.reproduce.overview import word

  def said(*verdicts):
    return word([{"verdict": verdict} for verdict in verdicts])

  assert said("shown", "shown") == "shown (2 of 2 claims)"
  assert said("shown", "contradicted") == "partly (1 of 2 claims, 1 contradicted)"
  assert said("not shown", "not run", "not measured") == "not shown (0 of 3 claims, 2 not run)"
