"""The authors' arrays: operators, a packed model with gradients at three capacities, streaming,
training steps.
"""

import pathlib

import numpy as np
import pytest

from jaxlm.checkpoint.errors import WeightsError
from jaxlm.config import ConfigError
from jaxlm.interop import hnet
from jaxlm.interop.golden.case import Case
from jaxlm.interop.verify import verify

pytestmark = pytest.mark.slow  # compiling whole models takes minutes on two cores

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "hnet"


@pytest.mark.parametrize("name", ["ssd_scan", "routing", "chunk_dechunk", "mamba2", "train_steps"])
def test_our_numbers_are_the_authors(name):
  row = verify(FOLDER / f"{name}.npz")
  assert row.passed, [c for c in row.comparisons if not c.passed] or row.message or row.unread


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inference_1stage", "lm_1stage_packed", "ratio_and_groups"])
def test_whole_models_are_the_authors(name):
  test_our_numbers_are_the_authors(name)


def official(name):
  case = Case(FOLDER / f"{name}.npz")
  return {k: v for k, v in case.config.items() if k in hnet.FIELDS}, case.group("param")


def test_official_weights_come_back_bit_for_bit():
  mapping, state = official("inference_1stage")
  table = hnet.entries(hnet.read_config(mapping))
  again = hnet.export_params(table, hnet.import_params(table, state))
  assert set(again) == set(state)
  for name in state:
    np.testing.assert_array_equal(again[name], state[name])


def test_misfits_are_listed_by_name():
  mapping, state = official("inference_1stage")
  table = hnet.entries(hnet.read_config(mapping))
  broken = dict(state, extra=np.zeros(3))
  del broken["backbone.residual_proj.bias"]
  broken["lm_head.weight"] = broken["lm_head.weight"].T
  with pytest.raises(WeightsError) as error:
    hnet.import_params(table, broken)
  for part in (
    "missing backbone.residual_proj.bias",
    "left over extra",
    "lm_head.weight has shape (32, 128)",
  ):
    assert part in str(error.value)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"d_modle": [1]}, "unknown field 'd_modle'; did you mean 'd_model'"),
    ({"ssm_cfg": {"d_stat": 3}}, "'d_stat' is not supported; did you mean 'd_state'"),
    ({"attn_cfg": {"num_heads": [2]}}, "1 values for 2 stages"),
  ],
)
def test_official_configs_that_cannot_be_meant_are_refused(change, message):
  with pytest.raises(ConfigError, match=message):
    hnet.read_config(official("inference_1stage")[0] | change)


def test_a_window_of_w_keys_before_the_query_is_ours_of_w_plus_one():
  mapping, _ = official("inference_1stage")
  stages = hnet.read_config(mapping).stages
  assert [s.attention.window for s in stages] == [
    None if w < 0 else w + 1 for w in mapping["attn_cfg"]["window_size"]
  ]
