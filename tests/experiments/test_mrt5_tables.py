"""The MrT5 tables declare runs that can be meant, and their measures say what they count."""

import importlib.util
import pathlib

import numpy as np
import pytest

from experiments.mrt5.deletion import summary
from jaxlm.experiments.runner import override, resolve
from jaxlm.generation.hard_deletion import slots
from jaxlm.training.config import check, run_config

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(
  p for p in (ROOT / "experiments" / "mrt5").glob("*.py") if "\nTABLE = " in p.read_text()
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_every_row_of_a_script_is_a_run_that_can_be_meant(path):
  spec = importlib.util.spec_from_file_location(f"mrt5_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  table = module.TABLE
  for scale in table.scales.values():
    for row in table.rows:
      config = resolve(
        table, table.row(row.evaluate_from) if row.evaluate_from else row, scale, "", 0
      )
      check(run_config(override(config, row.overrides_at(1)) if row.overrides_at else config), 1)


def test_a_summary_divides_sums_once():
  sums = dict(
    right=9,
    tokens=10,
    right_rows=1,
    rows=4,
    nll=np.log(2) * 20,
    weight=10,
    real=40,
    kept=30,
    widest=18,
    batches=2,
  )
  found = summary(sums)
  assert found["accuracy"] == 90 and found["sequence_accuracy"] == 25 and found["deleted"] == 25
  assert abs(found["bits"] - 2) < 1e-9 and found["width"] == 9 and found["mean_width"] == 7.5


def test_sorting_and_sharing_buffers_spare_the_slots_of_the_widest_row():
  counts = np.array([8, 1, 1, 2, 8, 1, 2, 1])
  assert slots(counts, 4, 16, "batch") == 4 * 8 * 2
  assert slots(counts, 4, 16, "sorted") == 4 * (1 + 8)
  assert slots(counts, 4, 16, "joined", rows=2) == 2 * (9 + 9)
  assert slots(counts, 4, 16, "joined", rows=4, multiple=8) == 16 + 16
