"""Recording taps while an H-Net streams does not change what runs."""

import jax
import jax.numpy as jnp
import numpy as np
from random_params import random_params

from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.routers import FixedStride
from jaxlm.models.hnet import HNetConfig, StageConfig

STAGE = StageConfig(
  d_model=16, d_ff=16, attention=AttentionConfig(2), mamba=Mamba2Config(d_state=4, head_dim=8)
)


def test_a_step_that_is_recorded_runs_the_inner_network_only_where_a_chunk_starts():
  """Chunks of two bytes: the inner network runs at every second step. With NaN for its parameters,
  a step is NaN where it runs.
  """
  outer = StageConfig(
    d_model=16, d_ff=16, mamba=Mamba2Config(d_state=4, head_dim=8), router=FixedStride(2)
  )
  cfg = HNetConfig("m1 [t1] m1", (outer, STAGE), vocab_size=32)
  network, params = cfg.build(), random_params(cfg)
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 4)), jnp.int32)

  def step(params, token_B1, state, **options):
    return network.apply({"params": params}, token_B1, state, method="extend", **options)

  plain = jax.jit(step)
  recorded = jax.jit(lambda *args: step(*args, mutable=["intermediates", "taps", "attention"]))
  state, states = cfg.init_state(2, 8), []
  for t in range(4):
    states.append(state)
    want, after = plain(params, tokens[:, t : t + 1], state)
    (got, state), found = recorded(params, tokens[:, t : t + 1], state)
    np.testing.assert_allclose(got, want, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, after)
    for name in found:
      inner = jax.tree.leaves(found[name]["backbone"]["inner"])
      assert inner and any(bool(jnp.any(x != 0)) for x in inner) == (t % 2 == 0)

  broken = jax.tree.map(lambda p: p * jnp.nan, params["backbone"]["inner"])
  broken = params | {"backbone": params["backbone"] | {"inner": broken}}
  for t in (2, 3):
    (logits, _), _ = recorded(broken, tokens[:, t : t + 1], states[t])
    assert bool(jnp.all(jnp.isnan(logits))) == (t == 2)
    assert t == 2 or bool(jnp.all(jnp.isfinite(logits)))
