"""Every test here has the marker `faults`, but those with the marker `slow`; its modules are
importable by name.
"""

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))


def pytest_collection_modifyitems(items):
  for item in items:
    if (
      HERE in item.path.parents
      and item.get_closest_marker("slow") is None
      and item.get_closest_marker("default") is None
    ):
      item.add_marker(pytest.mark.faults)
