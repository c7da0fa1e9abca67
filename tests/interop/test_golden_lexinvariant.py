"""The lexinvariant golden arrays, through the same check as `jaxlm verify`."""

import importlib
import pathlib

import pytest

from jaxlm.interop.golden import CHECKS
from jaxlm.interop.golden.case import Case

FILES = sorted((pathlib.Path(__file__).parents[1] / "golden" / "lexinvariant").glob("*.npz"))


def marked(path):
  """Compiling whole models takes minutes on two cores: those run with the slow tests."""
  return pytest.param(
    path, marks=[pytest.mark.slow] if path.stem.startswith(("lm_", "semi_")) else [], id=path.stem
  )


@pytest.mark.parametrize("path", [marked(path) for path in FILES])
def test_every_stored_result_agrees(path):
  case = Case(path)
  module, check = CHECKS[case.config["system"], case.config["kind"]].split(":")
  getattr(importlib.import_module(module), check)(case)
  assert not case.unread
  assert case.passed, [c for c in case.comparisons if not c.passed]


def test_all_kinds_are_here():
  kinds = {Case(path).config["kind"] for path in FILES}
  assert kinds == {kind for system, kind in CHECKS if system == "lexinvariant"}
