"""A run whose checkpoints are gone is not begun again in silence, and none is written where it
could not be read.
"""

import shutil

import pytest
import tiny_run

from jaxlm.config import ConfigError
from jaxlm.training import metrics
from jaxlm.training.run import train
from jaxlm.training.run_folder import lost_checkpoints

SMALL = {
  "mesh.fsdp": 1,
  "mesh.data": 8,
  "train.save_every": 2,
  "schedule": "constant",
  "eval.every": 0,
}


@pytest.mark.parametrize("name", ["sq[1]", "what?", "all*", "in[side]/r"])
def test_a_folder_whose_name_is_a_pattern_is_refused_before_anything_is_written(tmp_path, name):
  with pytest.raises(
    ConfigError, match="takes for a pattern, so that no checkpoint there could be read again"
  ):
    train(tiny_run.config(**SMALL), tmp_path / name, quiet=True)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("save_every", [0, 2])
def test_a_run_without_its_checkpoints_is_refused_and_its_metrics_stay(tmp_path, save_every):
  config = tiny_run.config(**SMALL | {"train.save_every": save_every})
  train(config, tmp_path, quiet=True)
  before = metrics.read(tmp_path)
  shutil.rmtree(tmp_path / "checkpoints")
  for _ in range(2):  # the first attempt leaves nothing that would make the second one pass
    with pytest.raises(
      ConfigError,
      match="has no checkpoint, but its metrics.jsonl goes to step 6: .*checkpoints was emptied or removed",
    ):
      train(config, tmp_path, quiet=True)
  assert metrics.read(tmp_path) == before
  (tmp_path / "metrics.jsonl").unlink()
  assert train(config, tmp_path, quiet=True).finished


@pytest.mark.parametrize(
  "steps, save_every, had_folder, lost",
  [
    (0, 2, True, False),  # nothing was trained
    (4, 2, True, False),  # killed while its first checkpoint was being written
    (5, 2, True, True),  # the second save has waited for the first
    (50, 0, True, False),  # a run that saves at its end only
    (1, 0, False, True),  # the folder is made before the first step
  ],
)
def test_a_run_killed_before_its_first_checkpoint_begins_again(
  tmp_path, steps, save_every, had_folder, lost
):
  lines = [f'{{"step": {n}, "loss": 1.0, "skipped": 0.0}}\n' for n in range(1, steps + 1)]
  (tmp_path / "metrics.jsonl").write_text("".join(lines))
  assert bool(lost_checkpoints(tmp_path, save_every, had_folder)) == lost


def test_steps_that_were_skipped_promise_no_checkpoint(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 9, "loss": "nan", "skipped": 1.0}\n')
  assert lost_checkpoints(tmp_path, 1, True) is None
