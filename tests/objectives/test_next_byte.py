"""Next byte with ratio loss: the loss, its statistics, buckets that follow the counts, and what is
refused.
"""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.layers.chunking import ratio_loss, straight_through
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.models.hnet import HNetConfig, StageConfig
from jaxlm.models.hnet_rules import forward_flops
from jaxlm.objectives.base import Fit, LossOutput, Pair
from jaxlm.objectives.next_byte import NextByte
from jaxlm.training.config import check, load_config, run_config
from jaxlm.training.run import flops_per_token

CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "hnet"
TINY, PAPER = str(CONFIGS / "tiny.py"), str(CONFIGS / "paper.py")

slow = pytest.mark.slow  # compiling whole models takes minutes on two cores


def stage(width):
  return StageConfig(width, mamba=Mamba2Config(d_state=4, head_dim=16))


MODEL = HNetConfig("m1 [m1] m1", (stage(16), stage(16)), vocab_size=32)


def batch(rows=2, length=16):
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (rows, length + 1)), jnp.int32)
  segment_ids = jnp.ones((rows, length), jnp.int32).at[1, 10:].set(0)
  return dict(
    tokens=tokens[:, :-1],
    targets=tokens[:, 1:],
    segment_ids=segment_ids,
    positions=jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (rows, length)),
    loss_weights=(segment_ids > 0).astype(jnp.float32),
    target_bytes=jnp.ones((rows, length), jnp.int32),
  )


def run(objective, bucket=None, train=True):
  module = MODEL.build()
  params = nn.unbox(module.init(jax.random.key(0), batch()["tokens"]))["params"]
  return jax.jit(
    lambda p: objective.loss(
      module, p, batch(), None, objective.init_state(), train=train, bucket=bucket
    )
  )(params)


@slow
def test_the_loss_is_cross_entropy_plus_weighted_ratio_over_valid_positions():
  objective = NextByte(targets=(4.0,), ratio_weight=0.5, stats_scope="global")
  loss, metrics = run(objective)[:2]
  np.testing.assert_allclose(
    loss.mean(), metrics["loss"].mean() + 0.5 * metrics["ratio_0"].mean(), rtol=1e-6
  )
  assert metrics["loss"].weight == 26 and metrics["boundaries_0"].weight == 26
  np.testing.assert_allclose(
    metrics["bits_per_byte"].mean(), metrics["loss"].mean() / np.log(2), rtol=1e-6
  )


def test_the_ratio_loss_is_one_on_target_and_pushes_through_the_mean_probability_only():
  np.testing.assert_allclose(ratio_loss(2.0, 2.0, 10.0, 5.0), 1.0, rtol=1e-6)
  assert jax.grad(ratio_loss, argnums=0)(4.0, 2.0, 10.0, 5.0) == 0
  assert jax.grad(ratio_loss, argnums=1)(4.0, 4.0, 10.0, 5.0) > 0  # too many cuts: fewer, please
  assert jax.grad(ratio_loss, argnums=1)(1.0, 1.0, 10.0, 5.0) < 0


def test_straight_through_is_one_with_the_derivative_of_the_identity():
  value, slope = jax.value_and_grad(lambda c: 3 * straight_through(c))(jnp.float32(0.6))
  assert (float(value), float(slope)) == (3.0, 3.0)


def test_the_buckets_end_with_a_bucket_that_always_fits():
  assert NextByte(targets=(6.0,)).buckets(MODEL, (4, 8192)) == (
    (1024,),
    (1536,),
    (2048,),
    (3072,),
    (4096,),
    (6144,),
    (8192,),
  )
  pairs = NextByte(targets=(3.0, 3.0)).buckets(MODEL, (4, 8192))
  assert len(pairs) <= 7 and pairs[-1] == (8192, 8192) and pairs[4] == (4096, 2048)
  assert NextByte().buckets(MODEL, (4, 8192)) == ()


@slow
def test_a_row_that_does_not_fit_overflows_and_the_wanted_bucket_holds_it():
  objective = NextByte(targets=(4.0,), multiple=2)
  buckets = objective.buckets(MODEL, (2, 16))
  _, metrics, fit, _ = run(objective, buckets[-1])
  most = float(metrics["chunks_max_0"].mean())
  assert fit.overflow == 0 and metrics["capacity_0"].mean() == buckets[-1][0]
  assert fit.need_S == [most]
  wanted = int(objective.next_bucket(fit, objective.init_state(), buckets))
  assert buckets[wanted][0] >= most and (wanted == 0 or buckets[wanted - 1][0] < 1.05 * most)
  small = run(objective, buckets[0]).fit
  assert most > buckets[0][0] and small.overflow > 0
  assert objective.next_bucket(small, objective.init_state(), buckets) == wanted


@slow
def test_clipping_is_for_training_only():
  objective = NextByte(targets=(4.0,), overflow="clip", capacities=((2,),))
  _, train, fit, _ = run(objective, (2,))
  assert fit.overflow == 0 and train["clipped_chunks"].sum > 0
  loss, evaluated, fit, _ = run(objective, (2,), train=False)
  assert fit.overflow == 0 and train["capacity_0"].sum == 2 and "capacity_0" not in evaluated
  np.testing.assert_allclose(loss.sum, run(NextByte(targets=(4.0,))).loss.sum, rtol=1e-5)


def output(*counts):
  """What a step says of micro-batches whose largest rows have so many chunks."""
  one = Pair(jnp.ones(()), jnp.ones(()))
  micro = [LossOutput(one, {}, Fit(jnp.zeros(()), jnp.asarray([float(n)]))) for n in counts]
  return functools.reduce(lambda a, b: a + b, micro)


def test_the_largest_count_loses_its_weight_step_by_step():
  objective = NextByte(targets=(4.0,), memory=0.5)
  state = objective.update_state(objective.init_state(), output(8))
  state = objective.update_state(state, output(2))
  assert float(state["largest"][0]) == 4.0


def test_the_largest_of_the_micro_batches_decides_not_their_mean():
  objective = NextByte(targets=(4.0,))
  state = objective.update_state(objective.init_state(), output(20, 4))
  np.testing.assert_allclose(state["largest"], [20])
  buckets = ((8,), (16,), (21,), (32,))
  assert objective.next_bucket(output(20, 4).fit, objective.init_state(), buckets) == 2


def test_a_byte_costs_what_the_paper_counts_at_the_target_not_every_parameter():
  cfg = run_config(load_config(f"{PAPER}:1stage_L"))
  told = flops_per_token(cfg)
  np.testing.assert_allclose(told, 3 * forward_flops(cfg.model, 8192, (6.0,)) / 8192)
  assert 3 * 0.3e9 < told < 3 * 0.43e9  # Table 1 prints 0.43 GFLOP forward, at 4.8 bytes a chunk
  assert NextByte().train_flops_per_token(object(), 8) is None


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(targets=(1.0,)), "targets\\[0\\] = 1.0"),
    (dict(targets=(4.0,), capacities=((0,),)), "wanted 1 or more"),
    (dict(targets=(4.0,), capacities=((4, 4),)), "for each of the 1 `targets`"),
    (dict(targets=(4.0,), capacities=((8,), (4,))), "smallest first"),
    (dict(targets=(4.0,), capacities=()), "has no bucket"),
    (dict(targets=(4.0,), headroom=0.9), "headroom = 0.9"),
    (dict(targets=(4.0,), memory=1.5), "memory = 1.5"),
    (dict(targets=(4.0,), ratio_weight=-1.0), "ratio_weight = -1.0"),
    (dict(targets=(4.0,), overflow="error"), "the one bucket"),
  ],
)
def test_impossible_settings_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    NextByte(**options)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"objective.targets": (3.0, 3.0), "objective.capacities": None}, "the model chunks 1 times"),
    ({"objective.targets": (), "objective.capacities": None}, "the model chunks 1 times"),
    ({"objective.rows_per_buffer": 2}, "the model says it, in model.join.rows_per_buffer"),
    ({"objective.slack": 1.1}, "write objective.headroom"),
    ({"model.join.rows_per_buffer": 3}, "does not divide the 8 rows"),
    ({"objective.capacities": ((32,), (64,))}, "may start 128 chunks in stage 0"),
    ({"model.stages.0.router": "given"}, "no data section makes"),
    ({"model.layout": "T3"}, "has 1 stage, `stages` has 2"),
    (
      {"model.stages.1.attention.num_heads": 5},
      "model: stages\\[1\\]: d_model = 96 is not divisible by num_heads = 5",
    ),
  ],
)
def test_sections_that_do_not_fit_an_hnet_are_refused_before_it_is_built(changes, message):
  with pytest.raises(ConfigError, match=message):
    check(run_config(load_config(TINY, changes)), 1)


def test_a_rule_or_a_policy_without_redoing_may_have_a_short_last_bucket():
  for changes in ({"model.stages.0.router": "space"}, {"objective.overflow": "clip"}):
    check(run_config(load_config(TINY, {"objective.capacities": ((32,), (64,))} | changes)), 1)


@slow
def test_targets_for_another_number_of_chunkings_are_refused():
  with pytest.raises(ConfigError, match="the model chunks 1 times"):
    run(NextByte(targets=(3.0, 3.0)))
