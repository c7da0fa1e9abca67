"""A weights folder where a run's would do: its shards, its model, and what is said when it does not
fit.
"""

import json

import jax
import numpy as np
import pytest
import tiny_run

from jaxlm.checkpoint.opening import initial_params, open_model
from jaxlm.checkpoint.weight_files import write_weights
from jaxlm.config import ConfigError
from jaxlm.training.saved_config import config_of

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture
def folder(tmp_path):
  model = {"kind": "tiny", "d_model": 24}
  (tmp_path / "model.json").write_text(
    json.dumps({"format": "jaxlm weights", "version": 1, "model": model})
  )
  files = write_weights(
    tmp_path, {"a/w": np.ones((2, 3), np.float16), "b": np.zeros(4, np.float32)}, shard_bytes=16
  )
  assert len(files) == 3
  return tmp_path


def abstract(shape=(2, 3)):
  def leaf(shape):
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=HERE)

  return {"a": {"w": leaf(shape)}, "b": leaf((4,))}


def test_all_shards_are_read_in_the_types_of_the_model(folder):
  params = initial_params(folder, abstract())
  assert (
    params["a"]["w"].dtype == np.float32
    and params["a"]["w"].sum() == 6
    and params["b"].shape == (4,)
  )


def test_what_does_not_fit_is_named(folder):
  with pytest.raises(
    ConfigError,
    match=r"does not fit the model in 1 parameters, among them a/w: \(2, 3\) there, \(3, 2\) here",
  ):
    initial_params(folder, abstract((3, 2)))
  with pytest.raises(ConfigError, match="has no steps"):
    open_model(folder, step=3)


def test_the_model_is_the_folders_and_the_rest_the_given_configurations(folder):
  given = tiny_run.config()
  cfg = config_of(folder, given, {"data.batch_size": 16})
  assert (
    cfg.model.d_model == 24
    and cfg.data.batch_size == 16
    and cfg.train.steps == given["train"]["steps"]
  )
  with pytest.raises(ConfigError, match="give --config=FILE"):
    config_of(folder)
