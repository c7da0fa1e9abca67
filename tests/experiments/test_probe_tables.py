"""The tables of the interpretability papers: every row is a configuration that may run, and every claim
reads rows and columns that there are.
"""

import dataclasses
import pathlib

import numpy as np
import pytest

from jaxlm.experiments.command import load
from jaxlm.experiments.reproduce.command import declared
from jaxlm.experiments.runner import resolve, results, run_rows
from jaxlm.experiments.table import Means
from jaxlm.experiments.verdict import Exact
from jaxlm.training.config import check, run_config

ROOT = pathlib.Path(__file__).parents[2]
PAPERS = {
  "attnsink",
  "zerotuning",
  "activedormant",
  "icl_linear",
  "scansnap",
  "actattack",
  "deconattn",
  "grains",
  "reagent",
  "functok",
  "avsr_sink",
  "biasprompt",
}
SCRIPTS = sorted({item.script for item in declared()[0] if item.script.split("/")[1] in PAPERS})


def test_each_of_the_twelve_papers_has_a_table_in_the_queue():
  assert {script.split("/")[1] for script in SCRIPTS} == PAPERS


@pytest.mark.parametrize("script", SCRIPTS)
def test_rows_resolve_at_every_scale_and_claims_read_cells_that_there_are(script):
  table = load(str(ROOT / script))
  for name, scale in table.scales.items():
    for row in table.rows:
      if row.evaluate_from:
        continue
      config = resolve(table, row, scale, next(iter(scale.sizes)), 0)
      if row.computes:
        assert config["seed"] == 0
      elif name != "paper":
        check(run_config(config), 1)
  rng = np.random.default_rng(0)
  means = Means(
    {(row.name, column.title): 1 + rng.random() for row in table.rows for column in table.columns}
  )
  for claim, predicate in table.claims.items():
    found = predicate(means)
    found = found[0] if isinstance(found, tuple) and not isinstance(found, Exact) else found
    assert found is None or isinstance(found, (float, bool, int, np.number, Exact)), claim
  if table.figure:
    assert not table.figure.rows or set(table.figure.rows) <= {row.name for row in table.rows}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_row_is_measured_after_a_few_steps(script, tmp_path):
  """The whole path of a row, of a model that has learned nothing: numbers are there, and finite."""
  table = load(str(ROOT / script))
  row, smoke = table.rows[0], table.scales["smoke"]
  if row.computes:
    pytest.skip("nothing is trained, and the row is measured by test_theory.py's functions")
  cut = {"train.steps": 4, "train.save_every": 2}
  if resolve(table, row, smoke, "", 0)["train"].get("keep_every"):
    cut |= {"train.keep_every": 2}
  brief = dataclasses.replace(smoke, overrides=smoke.overrides | cut, num_seeds=1)
  table = dataclasses.replace(table, scales={"smoke": brief})
  failed = run_rows(table, "smoke", rows=[row.name], seeds=[0], workdir=tmp_path)
  assert not failed
  ((_, found),) = results(table, "smoke", tmp_path).items()
  assert found["numbers"] and np.isfinite(list(found["numbers"].values())).all()
  known = found["numbers"].keys() | found["notes"].keys()
  assert table.columns[0].key in known and (
    not table.figure or table.figure.curve in found["curves"]
  )


def test_the_sink_runs_are_those_that_zero_tuning_reads():
  sinks, tuning = (
    load(str(ROOT / f"experiments/{x}.py")) for x in ("attnsink/sinks", "zerotuning/gamma")
  )
  assert tuning.runs == sinks.name and tuning.result_file != sinks.result_file
  for row in tuning.rows:
    ours = resolve(tuning, row, tuning.scales["smoke"], "", 0)
    assert ours == resolve(sinks, sinks.row(row.name), sinks.scales["smoke"], "", 0)
