"""PyTorch's starting point: bounds by the number of inputs, copies of a layer on request, norms as
they were.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.models.torch_init import redraw
from jaxlm.training.config import load_config, run_config


@pytest.mark.parametrize("identical", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_weight_is_uniform_within_one_over_the_root_of_its_inputs(identical):
  model = run_config(
    load_config(
      "configs/ilm/star_easy.py",
      {"model.d_model": 32, "model.mixer.num_heads": 2, "model.mlp.d_ff": 128},
    )
  ).model.build()
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nn.unbox(params))
  new = jax.jit(functools.partial(redraw, identical_layers=identical))(zeros, jax.random.key(1))

  def largest(x):
    return float(jnp.abs(x).max())

  wanted = {
    ("mixer", "w_q"): 32,
    ("mixer", "w_o"): 32,
    ("mlp", "w_in"): 32,
    ("mlp", "b_in"): 32,
    ("mlp", "w_out"): 128,
    ("mlp", "b_out"): 128,
  }
  for (part, name), inputs in wanted.items():
    assert 0.9 < largest(new["blocks"][part][name]) * inputs**0.5 <= 1, (part, name)
  assert (
    0.9 < largest(new["head"]["w_out"]) * 32**0.5 <= 1
    and 0.9 < largest(new["stop_head"]["w_out"]) * 32**0.5 <= 1
  )
  assert 0.9 < float(jnp.std(new["embed"]["embedding"])) < 1.1
  assert largest(new["blocks"]["norm"]["scale"]) == 0  # as it was given
  w_q = np.asarray(new["blocks"]["mixer"]["w_q"])
  assert np.array_equal(w_q[0], w_q[1]) == identical


def test_a_parameter_of_unknown_shape_is_named():
  with pytest.raises(ConfigError, match="parameter blocks/mixer/w_k2"):
    redraw({"blocks": {"mixer": {"w_k2": jnp.zeros((2, 3))}}}, jax.random.key(0))
