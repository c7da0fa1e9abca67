"""What there is of each sort: (name, one line) pairs."""

import ast
import importlib
import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterator

from jaxlm import parts

ROOT = pathlib.Path(__file__).parents[1]
Rows = Iterator[tuple[str, str]]


def first_sentence(text: str | None) -> str:
  """Of a docstring, in one line."""
  paragraph = (text or "").strip().split("\n\n")[0]
  line = " ".join(paragraph.split())
  return re.split(r"(?<=\.)\s+(?=[A-Z`])", line)[0].rstrip(".:;")


def of_parts(noun: str) -> Callable[[], Rows]:
  """The kinds of a table, those of installed packages too."""

  def rows() -> Rows:
    kinds = parts.table(noun)
    for kind in sorted(kinds.all()):
      yield kind, _about(kinds, kind)

  return rows


def tasks() -> Rows:
  """Data that are made up as they are needed: problems with answers."""
  kinds = parts.table("data")
  for kind in sorted(kinds.all()):
    cls = kinds.cls(kind)
    made_up = not {"source", "sources"} & set(cls.__dataclass_fields__)
    if made_up or cls.__module__.startswith("jaxlm.data.tasks"):
      yield kind, _about(kinds, kind)


def configs() -> Rows:
  """The configurations of this package."""
  from jaxlm.training.config_files import packaged

  for name, file in packaged().items():
    yield name, first_sentence(ast.get_docstring(ast.parse(file.read_text())))


def tables() -> Rows:
  """The scripts of tables and figures."""
  found = importlib.util.find_spec("experiments")
  for folder in (found.submodule_search_locations or ()) if found else ():
    for script in sorted(pathlib.Path(folder).glob("*/*.py")):
      tree = ast.parse(script.read_text())
      if any(
        isinstance(node, ast.Assign) and any(_is_name(t, "TABLE") for t in node.targets)
        for node in tree.body
      ):
        yield f"{script.parent.name}/{script.stem}", first_sentence(ast.get_docstring(tree))


def kernels() -> Rows:
  """The hot operations and the forms that each has."""
  forms = {"reference": "reference", "xla": "xla", "pallas_tpu": "pallas (TPU)"}
  for folder in sorted((ROOT / "kernels").iterdir()):
    if (folder / "api.py").is_file():
      has = [name for file, name in forms.items() if (folder / f"{file}.py").is_file()]
      has += ["splash (TPU)"] if (folder / "splash.py").is_file() else []
      package = ast.parse((folder / "__init__.py").read_text())
      text = ast.get_docstring(package) or _function_docstring(folder / "api.py", folder.name)
      yield folder.name, f"{first_sentence(text)}; {', '.join(has)}"


LISTS: dict[str, Callable[[], Rows]] = {
  "models": of_parts("model"),
  "mixers": of_parts("mixer"),
  "positions": of_parts("position"),
  "objectives": of_parts("objective"),
  "data": of_parts("data"),
  "tasks": tasks,
  "tokenizers": of_parts("tokenizer"),
  "embeddings": of_parts("embedding"),
  "norms": of_parts("norm"),
  "routers": of_parts("router"),
  "reductions": of_parts("reduction"),
  "optimizers": of_parts("optimizer"),
  "schedules": of_parts("schedule"),
  "engines": of_parts("decoding engine"),
  "processors": of_parts("logit processor"),
  "configs": configs,
  "tables": tables,
  "kernels": kernels,
}


def _about(kinds, kind: str) -> str:
  cls = kinds.cls(kind)
  text = cls.__doc__ or ""
  fields = "|".join(getattr(cls, "__dataclass_fields__", {})) or "(?!)"
  about_fields = re.compile(rf"(?:^|\s)(?:{fields})(?:, (?:{fields}))*: ")
  if text.startswith(f"{cls.__name__}(") or about_fields.match(text):  # nothing but its fields
    module = importlib.import_module(cls.__module__)
    text = module.__doc__ or ""
  return first_sentence(about_fields.split(text)[0])


def _is_name(node, name: str) -> bool:
  return isinstance(node, ast.Name) and node.id == name


def _function_docstring(file: pathlib.Path, name: str) -> str | None:
  for node in ast.parse(file.read_text()).body:
    if isinstance(node, ast.FunctionDef) and node.name == name:
      return ast.get_docstring(node)
  return None
