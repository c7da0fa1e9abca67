"""docs/promises.md: the tests that it names exist, and those that had no other place."""

import ast
import pathlib
import re

import pytest

from jaxlm.commands.flags import parse_flags
from jaxlm.config import ConfigError
from jaxlm.experiments.command import load
from jaxlm.training.config import load_config

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "promises.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_every_test_that_the_page_names_exists():
  assert len(NAMED) > 40
  there = {}
  for file, name in NAMED:
    if file not in there:
      there[file] = {
        node.name
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.FunctionDef)
      }
    assert name in there[file], f"{file} has no {name}"


def test_every_promise_has_its_test():
  promises = re.split(r"\n- ", PAGE.partition("## What is not promised")[0])[1:]
  assert len(promises) > 30
  for promise in promises:
    assert "::test_" in promise, promise


def program(path, last: str):
  path.write_text(
    f"import pathlib\npathlib.Path({str(path.with_suffix('.ran'))!r}).touch()\n{last}\n"
  )
  return path


def test_a_python_configuration_is_a_program_and_is_run(tmp_path):
  file = program(tmp_path / "c.py", "get_config = dict")
  load_config(str(file))
  assert file.with_suffix(".ran").exists()


def test_a_table_script_is_a_program_and_is_run(tmp_path):
  file = program(tmp_path / "t.py", "TABLE = None")
  with pytest.raises(ConfigError, match="declares no TABLE"):
    load(str(file))
  assert file.with_suffix(".ran").exists()


def test_a_value_on_the_command_line_is_never_run(tmp_path):
  for text in (
    f"__import__('pathlib').Path('{tmp_path}/ran').touch()",
    f"open('{tmp_path}/ran', 'w')",
    "().__class__.__mro__[1]",
  ):
    _, overrides, _ = parse_flags([f"--config.seed={text}"])
    assert overrides == {"seed": text}
  assert not (tmp_path / "ran").exists()
