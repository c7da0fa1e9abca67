"""`make demo` with a few steps: everything it promises is there, and nothing is resumed."""

import importlib.util
import pathlib
import shlex
import sys

import pytest

from jaxlm import cli

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def demo():
  spec = importlib.util.spec_from_file_location("demo", ROOT / "experiments/carope/demo.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_demo_ends_with_what_to_expect_and_three_commands(demo, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "executable", str(pathlib.Path.cwd() / ".venv" / "bin" / "python"))
  expected, _, *commands = demo.closing(tmp_path / "a run", 64, 600).partition("\n\n")
  assert expected.startswith("A byte model of 600 steps")
  lines = [shlex.split(line) for line in commands[0].splitlines() if line.startswith(".venv")]
  assert [words[:2] for words in lines] == [
    [".venv/bin/jaxlm", command] for command in ("eval", "generate", "train")
  ]
  assert lines[0][3] == f"{tmp_path}/a run/carope/seed0"


@pytest.mark.slow
def test_the_demo_trains_compares_samples_and_begins_anew_each_time(
  demo, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(ROOT)
  assert demo.main(["--workdir", str(tmp_path), "--steps", "8"]) == 0
  out = capsys.readouterr().out
  assert (
    "CARoPE continues 'The captain '" in out and "RoPE continues" in out and "train length" in out
  )
  [folder] = tmp_path.iterdir()
  assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG") and "| RoPE |" in (
    folder / "demo.md"
  ).read_text()
  for line in out.splitlines()[-3:]:
    words = shlex.split(line)[1:]
    if words[0] == "train":
      words += ["--config.train.steps=2", "--quiet"]
    assert cli.main(words) == 0, line
  assert demo.main(["--workdir", str(tmp_path), "--steps", "0"]) == 2
  assert "train.steps = 0" in capsys.readouterr().err
