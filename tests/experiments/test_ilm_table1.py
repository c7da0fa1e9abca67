"""Table 1 of insertion language models as declared: every row of every task is a run whose ids are
its task's.
"""

import dataclasses
import pathlib

import pytest

from jaxlm.experiments import command, runner
from jaxlm.training.config import check, run_config

ROOT = pathlib.Path(__file__).parents[2]
TABLE = command.load(str(ROOT / "experiments/ilm/table1.py"))
CASES = [
  (scale, size, row.name)
  for scale in TABLE.scales
  for size in TABLE.scales[scale].sizes
  for row in TABLE.rows
]


@pytest.mark.parametrize("scale, size, name", CASES)
def test_every_row_is_a_run_with_its_task_s_own_ids(scale, size, name):
  cfg = run_config(runner.resolve(TABLE, TABLE.row(name), TABLE.scales[scale], size, 0))
  check(cfg, 1)
  data, ids = cfg.data, cfg.data.special_tokens
  assert cfg.model.vocab_size >= data.vocab_size
  assert max(v for v in dataclasses.asdict(ids).values() if v is not None) < data.vocab_size
  [(prompt, answer)] = data.problems("test", seed=0, number=1)
  assert prompt[-1] == ids.bos and len(prompt) + len(answer) <= data.seq_len + (
    data.form == "causal"
  )


@pytest.mark.parametrize("size", ["easy", "medium", "hard"])
def test_the_paper_scale_is_the_release_s_recipe(size):
  runs = {
    row.name: run_config(runner.resolve(TABLE, row, TABLE.scales["paper"], size, 0))
    for row in TABLE.rows
  }
  assert {name: cfg.train.steps for name, cfg in runs.items()} == {
    "ilm": 50_000,
    "arm": 50_000 if size == "easy" else 100_000,
    "mdm": 100_000,
    "mdm_corrected": 100_000,
    "it": 50_000,
  }
  assert runs["arm"].optimizer.learning_rate == 1e-5 and runs["ilm"].optimizer.learning_rate == 1e-4
  assert all(
    cfg.model.d_model == 768 and cfg.model.num_layers == 12 and cfg.data.batch_size == 64
    for cfg in runs.values()
  )
  identical = {"ilm", "arm", "it"}  # of masked diffusion's starting point the spec says nothing
  assert all(
    cfg.train.init == ("torch_identical_layers" if name in identical else "own")
    for name, cfg in runs.items()
  )
  assert {name for name, cfg in runs.items() if cfg.model.dtype == "float32"} == (
    {"arm"} if size == "easy" else set()
  )
  assert {name: cfg.schedule.warmup_steps for name, cfg in runs.items()} == {
    name: 0 if name == "ilm" else 500 for name in runs
  }
  assert (
    runs["mdm_corrected"].objective.variant == "corrected"
    and runs["mdm"].model.residual == "official"
  )


@pytest.mark.parametrize("mdm, margin", [(0.0, None), (0.9, 0.06), (1.0, -0.04)])
def test_a_row_far_below_a_guess_is_compared_with_nothing(mdm, margin):
  means = {
    ("ilm", "exact match"): 0.95,
    ("mdm", "exact match"): mdm,
    ("mdm", "guessing the arm"): 1 / 3,
  }
  found = TABLE.claims["ILM is at least as good as masked diffusion (within 0.01)"](means)
  assert (found[0] if isinstance(found, tuple) else found) == (margin and pytest.approx(margin))
