"""Every citation of a specification names a file and sections that exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SPECS = ROOT / "docs" / "specs"
#: 'docs/specs/ilm.md, sections 4 to 6', '`docs/specs/hnet.md` 7-9, 16',
#: '(docs/specs/lexinvariant.md, 7)'.
CITATION = re.compile(
  r"docs/specs/([a-z-]+)\.md`?,?(?:\s+(?:sections?\s+)?(\d[\d., ]*(?:(?:to|and|-)\s*\d[\d., ]*)*))?"
)
FILES = [
  path
  for folder in ("jaxlm", "configs", "experiments", "tests", "bench", "tpu", "docs")
  for path in sorted((ROOT / folder).rglob("*"))
  if path.suffix in (".py", ".md") and path != pathlib.Path(__file__)
] + [ROOT / "README.md"]


def sections(name: str) -> set[str]:
  return set(
    re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", (SPECS / f"{name}.md").read_text(), re.MULTILINE)
  )


def cited(numbers: str) -> list[str]:
  """['4', '5', '6', '8'] of '4 to 6, 8'."""
  out = []
  for part in re.split(r",|\band\b", numbers):
    part = part.strip(" .")
    span = re.fullmatch(r"(\d+)\s*(?:to|-)\s*(\d+)", part)
    out += map(str, range(int(span[1]), int(span[2]) + 1)) if span else [part] if part else []
  return out


def test_the_specifications_of_the_six_systems_are_here():
  assert {path.stem for path in SPECS.glob("*.md")} >= {
    "carope",
    "hnet",
    "ilm",
    "lact",
    "lexinvariant",
    "mrt5",
  }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_cited_sections_exist(path):
  text = re.sub(r"\n[ #]*", " ", path.read_text())
  for name, numbers in CITATION.findall(text):
    assert (SPECS / f"{name}.md").is_file(), f"docs/specs/{name}.md does not exist"
    missing = [number for number in cited(numbers) if number not in sections(name)]
    assert not missing, f"docs/specs/{name}.md has no section {', '.join(missing)}"


def test_a_wrong_section_would_be_seen():
  name, numbers = CITATION.search("(docs/specs/ilm.md, sections 4 to 6, 7.1 and 99)").groups()
  assert (
    cited(numbers) == ["4", "5", "6", "7.1", "99"]
    and "99" not in sections(name)
    and "7.1" in sections(name)
  )
