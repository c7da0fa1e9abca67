"""`train.debug` says in which step, layer and line the first NaN arose, inside a loop over layers
too.
"""

import json

import flax.linen as nn
import jax.numpy as jnp
import pytest
import tiny_run

from jaxlm.training.run import train


class LogBlock(nn.Module):
  cfg: tiny_run.TinyModel

  @nn.compact
  def __call__(self, x_BTD, _):
    return x_BTD + Log(name="log")(x_BTD), None


class Log(nn.Module):
  @nn.compact
  def __call__(self, x_BTD):
    scale = self.param("scale", nn.initializers.ones, (1, 1, 1))
    return scale * jnp.log(-1.0 - jnp.abs(x_BTD))


def test_the_sentence_names_step_layer_and_line(tmp_path, monkeypatch):
  monkeypatch.setattr(tiny_run, "Block", LogBlock)
  with pytest.raises(
    FloatingPointError,
    match=r"^step 1: invalid value \(nan\) encountered in log in layer blocks/log "
    r"\(test_first_nan.py, line 27\)",
  ):
    train(tiny_run.config(**{"train.debug": True}), tmp_path, quiet=True)
  result = json.loads((tmp_path / "result.json").read_text())
  assert result["failed"].startswith("step 1: invalid value") and not result["finished"]
