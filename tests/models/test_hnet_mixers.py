"""Any registered mixer stands in an H-Net's stack in Mamba-2's place: it trains, streams, and is
counted there.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from jaxlm.config import ConfigError
from jaxlm.interop.hnet import write_config
from jaxlm.layers.mixer import MIXERS
from jaxlm.models.hnet_rules import mamba2_flops, traced_flops
from jaxlm.training.config import load_config, run_config
from jaxlm.training.run import flops_per_token

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "hnet" / "tiny.py")
MAMBA = dict(d_state=4, head_dim=16)
FIELDS = {
  "mamba2": MAMBA,
  "gla": dict(num_heads=2, chunk=16),
  "delta_rule": dict(num_heads=2, chunk=4),
  "gated_delta_rule": dict(num_heads=2, chunk=4),
  "attention": dict(num_heads=2, position="rope"),
  "similarity_attention": dict(num_heads=2, position="rope"),
  "key_only_attention": dict(num_heads=2),
  "channel_mlp": dict(d_ff=16),
  "lact": dict(num_heads=2, window=4, position="rope", fast=dict(num_heads=1, chunk=4)),
  "hybrid": dict(
    members=(dict(kind="gla", num_heads=2), dict(kind="attention", num_heads=2, window=3))
  ),
}
T = 24


def model(kind):
  """One Mamba-2 layer around one of the mixer, with an MLP, on the chunks."""
  stages = [
    dict(d_model=16, d_ff=16, mamba=MAMBA, router=dict(kind="pool", width=2)),
    dict(d_model=16, d_ff=16, mamba=dict(kind=kind, **FIELDS[kind])),
  ]
  return run_config(load_config(CONFIG, {"model.layout": "m1 [M1] m1", "model.stages": stages}))


def batch(rng):
  tokens = rng.integers(0, 256, (2, T + 1)).astype(np.int32)
  return dict(
    tokens=tokens[:, :-1],
    targets=tokens[:, 1:],
    segment_ids=np.ones((2, T), np.int32),
    positions=np.broadcast_to(np.arange(T, dtype=np.int32), (2, T)),
    loss_weights=np.ones((2, T), np.float32),
  )


def test_every_mixer_is_tried():
  # Stages hand no embedding on, which stream attention reads: it is refused.
  assert set(FIELDS) == set(MIXERS.table) - {"pattern", "stream_attention"}


# LaCT has the most states of its own. All are read and streamed alone in
# tests/layers/test_registered_mixers.py.
@pytest.mark.parametrize(
  "kind",
  [kind if kind == "lact" else pytest.param(kind, marks=pytest.mark.slow) for kind in FIELDS],
)
def test_a_mixer_in_the_main_network_learns_and_streams_as_the_parallel_pass(kind):
  cfg, data = model(kind), batch(np.random.default_rng(0))
  params, network = random_params(cfg.model), cfg.model.build()

  def loss(params):
    return cfg.objective.loss(
      network, params, data, jax.random.key(0), cfg.objective.init_state(), train=True
    ).loss.mean()

  grads = jax.jit(jax.grad(loss))(params)["backbone"]["inner"]["main"]
  assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads["run_0"]["mixer"])) > 0

  tokens = jnp.asarray(data["tokens"])
  want = jax.jit(lambda tokens: network.apply({"params": params}, tokens))(tokens)
  extend = jax.jit(
    lambda tokens, state: network.apply({"params": params}, tokens, state, method="extend")
  )
  state, got = cfg.model.init_state(2, T), []
  for piece in np.split(tokens, [13, *range(14, T)], axis=1):  # a prefill, then steps
    logits, state = extend(piece, state)
    got.append(logits)
  np.testing.assert_allclose(jnp.concatenate(got, 1), want, atol=2e-4)  # float32 logits of about 10


def test_the_mixer_is_chosen_by_one_key_and_the_old_mapping_means_mamba2():
  cfg = run_config(
    load_config(CONFIG, {"model.stages.0.mamba": "gla", "model.stages.0.mamba.num_heads": 2})
  )
  assert (
    MIXERS.kind_of(cfg.model.stages[0].mamba) == "gla" and cfg.model.stages[0].mamba.num_heads == 2
  )
  assert MIXERS.kind_of(model("mamba2").model.stages[0].mamba) == "mamba2"
  with pytest.raises(ConfigError, match="num_heads = 5 does not divide"):
    run_config(load_config(CONFIG, {"model.stages.0.mamba": dict(kind="gla", num_heads=5)}))
  with pytest.raises(ConfigError, match="one mixer"):
    run_config(
      load_config(
        CONFIG, {"model.stages.0.mamba": dict(kind="pattern", members=(dict(kind="gla"),))}
      )
    )


@pytest.mark.parametrize("kind", FIELDS)
def test_flops_of_a_mixer_in_a_stage_are_counted(kind):
  assert flops_per_token(model(kind)) > 0


def test_the_traced_count_is_near_the_papers_formula_where_there_is_one():
  config = MIXERS.build(dict(kind="mamba2", d_state=64, head_dim=64))
  paper = mamba2_flops(1024, 512, 2, 64, config.num_heads(512), 4)
  assert traced_flops(config, 512, 1024) == pytest.approx(
    paper, rel=0.35
  )  # it counts the chunks' squares, and no taps


def test_a_released_file_cannot_say_another_mixer():
  with pytest.raises(ConfigError, match="a released H-Net has Mamba-2 there"):
    write_config(model("gla").model)
