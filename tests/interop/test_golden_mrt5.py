"""MrT5's golden arrays, through the same check as `jaxlm verify`."""

import importlib
import pathlib

import pytest

from jaxlm.interop.golden import CHECKS
from jaxlm.interop.golden.case import Case

FILES = sorted((pathlib.Path(__file__).parents[1] / "golden" / "mrt5").glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_stored_result_agrees(path):
  case = Case(path)
  module, check = CHECKS[case.config["system"], case.config["kind"]].split(":")
  getattr(importlib.import_module(module), check)(case)
  assert not case.unread
  assert case.passed, [c for c in case.comparisons if not c.passed]


def test_all_kinds_are_here():
  kinds = {Case(path).config["kind"] for path in FILES}
  assert kinds == {kind for system, kind in CHECKS if system == "mrt5"}
