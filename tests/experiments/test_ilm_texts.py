"""Tables 2 and 3 and the zebra column: rows that can be trained at every scale, judges that are
found or asked for.
"""

import importlib.util
import json
import pathlib

import pytest

from experiments.ilm.texts import trained_beside
from jaxlm.config import ConfigError
from jaxlm.experiments.runner import resolve
from jaxlm.training.config import run_config

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "ilm"


def table(name):
  spec = importlib.util.spec_from_file_location(f"ilm_{name}", FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.TABLE


@pytest.mark.parametrize("name", ["table2", "table3", "zebra"])
def test_every_row_resolves_to_a_run_at_every_scale(name):
  found = table(name)
  for scale in found.scales.values():
    for size in scale.sizes:
      for row in found.rows:
        cfg = run_config(resolve(found, row, scale, size, 0))
        assert cfg.data.form == {
          "ilm": "insertion",
          "it": "insertion_transformer",
          "mdm": "masked_diffusion",
        }.get(row.name, "causal")


def test_models_and_judge_read_different_documents():
  found = table("table2")
  folds = {
    row.name: run_config(resolve(found, row, found.scales["smoke"], "", 0)).data.fold
    for row in found.rows
  }
  assert folds.pop("judge") == (1, 2) and set(folds.values()) == {(0, 2)}


def test_the_two_tables_measure_the_same_runs():
  one, two = table("table2"), table("table3")
  assert one.runs == two.runs and one.result_file != two.result_file
  for row in two.rows:
    for name in one.scales:
      size = next(iter(one.scales[name].sizes))
      assert resolve(one, one.row(row.name), one.scales[name], size, 0) == resolve(
        two, row, two.scales[name], size, 0
      )


def test_a_judge_that_has_not_finished_is_asked_for(tmp_path):
  judge = tmp_path / "judge" / "seed0"
  judge.mkdir(parents=True)
  with pytest.raises(ConfigError, match="row 'judge', has not finished"):
    trained_beside("judge")(str(tmp_path / "ilm" / "seed0"))
  (judge / "result.json").write_text(json.dumps({"finished": False}))
  with pytest.raises(ConfigError, match="run that row first"):
    trained_beside("judge")(str(tmp_path / "ilm" / "seed0"))
