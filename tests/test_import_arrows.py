"""The arrows of the architecture: who may import whom inside jaxlm."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "jaxlm"

# The files beside the rooms, open to all but kernels.
OPEN = {"config", "json_text", "lazy", "outside", "parameter", "parts", "paths", "ranges"}

# room -> rooms it may import.
MAY_IMPORT = {
  "kernels": set(),
  "commands": {
    "checkpoint",
    "data",
  },  # shared by the arms of cli.py: how they read flags, end and print
  "layers": {"kernels"},
  "models": {"kernels", "layers"},
  "objectives": {"kernels", "layers", "models"},
  "data": set(),
  "parallel": set(),
  "checkpoint": {"models", "data", "parallel"},  # trained models on disk, for all who read them
  "training": {
    "checkpoint",
    "kernels",  # its log says which implementations they take
    "objectives",
    "models",
    "parallel",
    "data",
    "evaluation",
    "generation",
  },
  "generation": {"kernels", "layers", "models", "objectives", "data"},
  "evaluation": {"models", "objectives", "generation", "data", "parallel"},
  "analysis": {"kernels", "layers", "models"},
  "interop": {
    "checkpoint",
    "commands",
    "kernels",
    "layers",
    "models",
    "objectives",
    "data",
    "generation",
    "evaluation",
  },
  "preflight": {
    "commands",
    "training",
    "parallel",
    "models",
    "objectives",
    "data",
    "generation",
    "evaluation",
  },
  "discover": {  # what there is, for people: reads everything, and nothing imports it
    "checkpoint",
    "commands",
    "generation",
    "training",
  },
  "experiments": {
    "analysis",
    "kernels",
    "layers",
    "checkpoint",
    "training",
    "evaluation",
    "preflight",
    "generation",
    "models",
    "objectives",
    "data",
    "parallel",
  },
}


def imported_rooms(path: pathlib.Path):
  """(line, room) of every import of jaxlm in a file, deferred imports and registry strings
  included.
  """
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [
        f"{node.module}.{alias.name}" if node.module == "jaxlm" else node.module or ""
        for alias in node.names
      ]
    else:
      continue
    for name in names:
      parts = name.split(".")
      if parts[0] == "jaxlm" and len(parts) > 1:
        yield node.lineno, parts[1]


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_point_downwards(room):
  allowed = MAY_IMPORT[room] | {room} | (OPEN if room != "kernels" else set())
  wrong = [
    f"{path.relative_to(ROOT)}:{line} imports {target}"
    for path in sorted((ROOT / room).rglob("*.py"))
    if path.name != "command.py"  # the arms of cli.py
    for line, target in imported_rooms(path)
    if target not in allowed
  ]
  assert not wrong, "\n".join(wrong)


def test_every_room_has_its_arrows():
  rooms = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
  assert rooms <= set(MAY_IMPORT)
