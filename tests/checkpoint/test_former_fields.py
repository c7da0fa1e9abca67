"""Runs that were saved when fields had other names are read as what they were."""

import json

import pytest

from jaxlm.checkpoint.opening import run_mapping
from jaxlm.config import ConfigError
from jaxlm.training.config import load_config, resolved, run_config

CASES = {
  "configs/ilm/star_easy.py:masked_diffusion": ({"mask": 25}, {}),
  "configs/ilm/star_easy.py:insertion_transformer": ({"eos": 22}, {}),
  "configs/hnet/tiny.py": ({"slack": 1.2, "rows_per_buffer": 1}, {"headroom": 1.2}),
  "configs/mrt5/smoke.py": ({"slack": 1.3}, {"headroom": 1.3}),
}


@pytest.mark.parametrize("file", CASES)
def test_a_saved_run_of_former_fields_is_read_and_a_person_is_told(file, tmp_path):
  former, present = CASES[file]
  saved = resolved(run_config(load_config(file)))
  want = saved | {"objective": saved["objective"] | present}
  objective = {k: v for k, v in saved["objective"].items() if k not in present}
  (tmp_path / "config.json").write_text(json.dumps(saved | {"objective": objective | former}))
  assert resolved(run_config(run_mapping(tmp_path))) == want
  assert resolved(run_config(load_config(str(tmp_path / "config.json")))) == want
  for name, value in former.items():
    with pytest.raises(ConfigError, match=f"there is no --config.objective.{name} any more"):
      load_config(file, {f"objective.{name}": value})
