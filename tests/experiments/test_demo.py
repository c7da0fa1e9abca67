"""`make demo` with a few steps: everything it promises is there, and nothing is resumed."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_trains_compares_samples_and_begins_anew_each_time(tmp_path, capsys):
  spec = importlib.util.spec_from_file_location("demo", ROOT / "experiments/carope/demo.py")
  demo = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(demo)
  assert demo.main(["--workdir", str(tmp_path), "--steps", "8"]) == 0
  out = capsys.readouterr().out
  assert (
    "CARoPE continues 'The captain '" in out and "RoPE continues" in out and "train length" in out
  )
  [folder] = tmp_path.iterdir()
  assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG") and "| RoPE |" in (
    folder / "demo.md"
  ).read_text()
  assert demo.main(["--workdir", str(tmp_path), "--steps", "0"]) == 2
  assert "train.steps = 0" in capsys.readouterr().err
