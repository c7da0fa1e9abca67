"""docs/architecture.md says what the code does: its rooms and arrows are those of the import test,
its tables exist.
"""

import importlib
import pathlib
import re

import test_import_arrows as arrows

from jaxlm.config import Kinds

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_rooms_and_their_imports_are_those_that_are_enforced():
  rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE))
  rows = {
    room: set() if may == "nothing of jaxlm" else set(re.split(r",\s*", may))
    for room, may in rows.items()
    if room in arrows.MAY_IMPORT
  }
  assert rows == arrows.MAY_IMPORT


def test_every_registry_and_file_that_it_names_exists():
  for name in re.findall(r"`(jaxlm\.[\w.]+\.[A-Z_]+)`", PAGE):
    module, _, table = name.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), table), Kinds), name
  for path in re.findall(r"`((?:[\w]+/)*[\w]+\.py)`", PAGE):
    assert any((ROOT / at / path).is_file() for at in ("", "jaxlm")) or list(
      (ROOT / "jaxlm").rglob(path)
    ), path
