"""The letters that docs/glossary.md calls the same in every file are, wherever a file names its axes."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SAME = {
  "B": ("batch",),
  "T": ("time", "position", "queries", "token", "decoder", "decoded", "new tokens", "rows"),
  "D": ("d_model", "channels", "the width"),
  "V": ("vocab", "symbols"),
}
FILES = sorted(path for path in (ROOT / "jaxlm").rglob("*.py") if "Axes: " in path.read_text())


def declared(text: str):
  """(letters, meaning) of each entry after `Axes:`."""
  for found in re.finditer(r"Axes: (.*?)(?:\n\n|\"\"\"|\. [A-Z][a-z])", text, re.DOTALL):
    line = re.sub(r"\s+", " ", found[1])
    for entry in re.split(r"[,;] ", line):
      if match := re.fullmatch(r"((?:[A-Z](?: and | or )?)+) ([a-z(].*)", entry.strip()):
        yield re.findall("[A-Z]", match[1]), match[2]


def test_the_glossary_names_every_letter_that_is_the_same():
  page = (ROOT / "docs" / "glossary.md").read_text()
  assert re.findall(r"^\| ([A-Z]) \| ", page.split("These mean one thing")[0], re.M) == list(SAME)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_uses_them_so(path):
  for letters, meaning in declared(path.read_text()):
    for letter in letters:
      assert letter not in SAME or meaning.startswith(SAME[letter]), f"{letter} is {meaning!r}"
