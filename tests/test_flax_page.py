"""The code of docs/flax.md: a jaxlm layer inside an NNX module has the layer's values and gradients."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.mixer import Context

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "flax.md").read_text()


def test_a_layer_runs_inside_an_nnx_module():
  names = {}
  (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
  exec(block, names)
  model, tokens_BT = names["model"], names["tokens_BT"]
  assert np.isfinite(names["loss"])
  norms = jax.tree.map(lambda g: float(jnp.abs(g).sum()), nnx.to_pure_dict(names["gradients"]))
  assert all(value > 0 for value in jax.tree.leaves(norms["mixer"]))

  params = nnx.to_pure_dict(nnx.state(model.mixer, nnx.Param))
  x_BTD = model.embed(tokens_BT)
  position_BT = jnp.broadcast_to(jnp.arange(12), (2, 12))
  layer = Mamba2Config(d_state=16, head_dim=16).build(32, "float32")
  want, _ = layer.apply(
    {"params": params}, x_BTD, Context(jnp.ones_like(tokens_BT), position_BT, packed=False), None
  )
  got, _ = model.mixer(x_BTD, Context(jnp.ones_like(tokens_BT), position_BT, packed=False), None)
  np.testing.assert_array_equal(got, want)
