"""A weights folder where a run's would do: its shards, its model, and what is said when it does not fit."""

import json

import jax
import numpy as np
import pytest
import tiny_run
from safetensors.numpy import save_file

from jaxlm.config import ConfigError
from jaxlm.training.checkpoints import initial_params, restore_params
from jaxlm.training.weights_folder import config_of

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "model.json").write_text(json.dumps({"model": {"kind": "tiny", "d_model": 24}}))
  save_file({"a/w": np.ones((2, 3), np.float16)}, tmp_path / "model-00001-of-00002.safetensors")
  save_file({"b": np.zeros(4, np.float32)}, tmp_path / "model-00002-of-00002.safetensors")
  return tmp_path


def abstract(shape=(2, 3)):
  leaf = lambda shape: jax.ShapeDtypeStruct(shape, np.float32, sharding=HERE)
  return {"a": {"w": leaf(shape)}, "b": leaf((4,))}


def test_all_shards_are_read_in_the_types_of_the_model(folder):
  for params in (initial_params(folder, abstract()), restore_params(folder, params=abstract())[0]):
    assert params["a"]["w"].dtype == np.float32 and params["a"]["w"].sum() == 6 and params["b"].shape == (4,)


def test_what_does_not_fit_is_named(folder):
  with pytest.raises(ConfigError, match=r"does not fit the model in 1 parameters, among them a/w: \(2, 3\) there, \(3, 2\) here"):
    initial_params(folder, abstract((3, 2)))
  with pytest.raises(ConfigError, match="has no steps"):
    restore_params(folder, step=3, params=abstract())


def test_the_model_is_the_folders_and_the_rest_the_given_configurations(folder):
  given = tiny_run.config()
  cfg = config_of(folder, given, {"data.batch_size": 16})
  assert cfg.model.d_model == 24 and cfg.data.batch_size == 16 and cfg.train.steps == given["train"]["steps"]
  with pytest.raises(ConfigError, match="give --config=FILE"):
    config_of(folder)
