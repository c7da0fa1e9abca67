"""The site builds without a warning, and its helpers do what they say. Building needs the extra `docs`."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NEEDED = ("sphinx", "myst_nb", "furo", "latex2mathml")


@pytest.fixture
def site(monkeypatch):
  pytest.importorskip("sphinx")
  monkeypatch.syspath_prepend(str(ROOT / "docs"))


def test_a_docstring_becomes_restructured_text(site):
  from _site.docstrings import converted

  said = converted(["y = `a_b`s of x_B * 2.", "", "  z = x * y", "", "- one", "- `two`"])
  assert said == [
    r"y = ``a_b``\ s of x\_B \* 2.",
    "",
    "::",
    "",
    "    z = x * y",
    "",
    "- one",
    "- ``two``",
    "",
  ]


def test_links_of_the_repository_become_links_of_the_site(site):
  from _site.links import lower, moved

  page, known = ROOT / "docs" / "about" / "x.md", {}
  known[ROOT / "CHANGELOG.md"] = ROOT / "docs" / "about" / "changelog.md"
  text = "[a](CHANGELOG.md#b) [c](docs/start.md) [d](Makefile) ![e](docs/figures/headline.svg) `[f](g)` [h](https://i.org)"
  assert moved(text, ROOT, page, known) == (
    "[a](changelog.md#b) [c](../start.md) {download}`d <../../Makefile>` ![e](../figures/headline.svg) `[f](g)` [h](https://i.org)"
  )
  assert lower("# a\n```sh\n# b\n```\n## c\n") == "## a\n```sh\n# b\n```\n### c\n"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
  """Notebooks are not run here: `test_pages_run.py` runs their cells."""
  for name in NEEDED:
    pytest.importorskip(name)
  options = ["-q", "-W", "--keep-going", "-b", "html", "-D", "nb_execution_mode=off"]
  command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(tmp_path / "html")]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "html" / "systems" / "carope.html").exists()


def test_names_between_backticks_are_code_in_tables_of_keys(site):
  from _site.fields import inline

  found = [(type(node).__name__, node.astext()) for node in inline("base `theta`; or `constant`")]
  assert found == [
    ("Text", "base "),
    ("literal", "theta"),
    ("Text", "; or "),
    ("literal", "constant"),
  ]
  assert [node.astext() for node in inline("one ` alone")] == ["one ` alone"]
