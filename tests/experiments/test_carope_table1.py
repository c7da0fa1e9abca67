"""Table 1 of CARoPE as declared: every row at every scale is a configuration that can be built."""

import math
import pathlib

import pytest

from jaxlm.experiments import command, runner
from jaxlm.training.config import run_config

ROOT = pathlib.Path(__file__).parents[2]
TABLE = command.load(str(ROOT / "experiments/carope/table1.py"))
CASES = [
  (scale, size, row.name)
  for scale in TABLE.scales
  for size in TABLE.scales[scale].sizes
  for row in TABLE.rows
]


def resolved(scale, size, name):
  row = TABLE.row(name)
  return runner.resolve(TABLE, TABLE.row(row.evaluate_from or name), TABLE.scales[scale], size, 0)


@pytest.mark.parametrize("scale, size, name", CASES)
def test_every_row_is_a_valid_configuration(scale, size, name):
  config, row = resolved(scale, size, name), TABLE.row(name)
  for multiple in (1, 2, 4):
    overrides = row.overrides_at(multiple) if row.overrides_at else {}
    cfg = run_config(runner.override(config, overrides))
    scaling = getattr(cfg.model.position, "scaling", None)
    assert (scaling is not None) == (bool(row.evaluate_from) and multiple > 1)
    if scaling is not None:
      assert scaling.factor == multiple
      assert getattr(scaling, "original_len", cfg.data.seq_len) == cfg.data.seq_len


def test_rows_of_a_scale_differ_in_the_position_encoding_alone():
  named = {"sinusoidal_scaled"}  # says in its label what else it changes
  for scale in TABLE.scales:
    for size in TABLE.scales[scale].sizes:
      rest = []
      for row in (r for r in TABLE.rows if r.name not in named):
        config = resolved(scale, size, row.name)
        config["model"].pop("position")
        rest.append(config)
      assert all(config == rest[0] for config in rest)


def test_the_large_base_is_where_the_printed_formula_starts():
  for scale, r in (("smoke", 64), ("small", 64), ("paper", 64)):
    for size in TABLE.scales[scale].sizes:
      theta = resolved(scale, size, "rope_large_base")["model"]["position"]["theta"]
      assert theta ** (-2 / r) == pytest.approx(1 / (1 + math.log(2)), rel=1e-12)


def test_the_papers_sizes_and_numbers_are_the_papers():
  tiny, small = (run_config(resolved("paper", size, "carope")) for size in ("tiny", "small"))
  assert (tiny.model.num_layers, tiny.model.d_model, tiny.model.mixer.num_heads) == (6, 512, 8)
  assert (small.model.num_layers, small.model.d_model, small.model.mixer.num_heads) == (12, 768, 12)
  for cfg in (tiny, small):
    assert (cfg.data.seq_len, cfg.data.batch_size * cfg.data.seq_len, cfg.train.steps) == (
      512,
      524_288,
      19_000,
    )
  values = {
    (row, column, n.size): n.value
    for (row, column) in TABLE.published
    for n in TABLE.numbers(row, column)
  }
  assert values["rope", "2x", "tiny"] == 81.27 and values["carope", "2x", "small"] == 21.39
  assert len(values) == 14 and not any(
    row == "learned" and column == "2x" for row, column, _ in values
  )
