"""Sequence to sequence with a delete gate: hard deletion in training, the buckets of its capacities,
what is refused.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.layers.delete_gate import DeleteGateConfig
from jaxlm.models.encoder_decoder import EncoderDecoderConfig
from jaxlm.objectives.sequence_to_sequence import SequenceToSequence
from jaxlm.training.config import check, run_config

MODEL = EncoderDecoderConfig(
  vocab_size=40,
  d_model=16,
  d_ff=24,
  num_heads=2,
  d_kv=8,
  num_encoder_layers=2,
  num_decoder_layers=1,
  softmax1=True,
  reduction=DeleteGateConfig(layer=1),
)
TOKENS = jnp.asarray([[5, 9, 12, 7, 30, 8, 22, 1], [11, 6, 14, 1, 0, 0, 0, 0]])
BATCH = dict(
  tokens=TOKENS,
  decoder_tokens=jnp.pad(TOKENS[:, :-1], ((0, 0), (1, 0))),
  targets=TOKENS,
  loss_weights=(TOKENS > 0).astype(jnp.float32),
)


@pytest.fixture(scope="module")
def tiny():
  module = MODEL.build()
  params = nn.unbox(jax.jit(module.init)(jax.random.key(0), TOKENS, TOKENS))["params"]
  params["reduction"]["b"] = jnp.zeros_like(params["reduction"]["b"])  # deletes about half
  return module, params


def run(tiny, objective, bucket=None):
  module, params = tiny

  def loss(p, key):
    return objective.loss(module, p, BATCH, key, objective.init_state(), train=True, bucket=bucket)

  return jax.jit(loss)(params, jax.random.key(0))


def test_training_mixes_hard_and_soft_deletion_with_the_score_regulariser(tiny):
  module, params = tiny
  objective = SequenceToSequence(beta=0.5, hard_probability=0.5, multiple=1)
  state = objective.init_state()
  grad = jax.jit(
    jax.grad(
      lambda p, key: (lambda out: (out.loss.sum, out.metrics))(
        objective.loss(module, p, BATCH, key, state, train=True, bucket=8)
      ),
      has_aux=True,
    )
  )
  found = [grad(params, jax.random.key(i)) for i in range(6)]
  of_gate = [float(jnp.abs(g["reduction"]["w"]).sum()) for g, _ in found]
  assert min(of_gate) < max(
    of_gate
  )  # after hard deletion only the score regulariser reaches what lies before the gate
  assert all(np.isfinite(float(m["score_excess"].mean())) for _, m in found)


def test_a_step_that_does_not_fit_says_so_and_names_the_bucket_that_holds_it(tiny):
  objective = SequenceToSequence(hard_probability=1.0, multiple=1)
  buckets, state = objective.buckets(MODEL, (2, 8)), objective.init_state()
  assert buckets == (1, 2, 3, 4, 6, 8)
  full, metrics, fit, _ = run(tiny, objective, 8)
  need = int(metrics["kept_max"].mean())
  wanted = int(objective.next_bucket(fit, state, buckets))
  assert fit.overflow == 0 and buckets[wanted] >= need
  short = run(tiny, objective, 1).fit
  assert need > 1 and short.overflow > 0
  assert objective.next_bucket(short, state, buckets) == wanted
  exact = run(tiny, objective, buckets[wanted]).loss
  np.testing.assert_allclose(exact.sum, full.sum, rtol=1e-5)
  dropped = run(tiny, SequenceToSequence(hard_probability=1.0, overflow="drop", capacities=(1,)), 1)
  assert dropped.fit.overflow == 0 and dropped.metrics["dropped_tokens"].sum >= need - 1


def config(**objective):
  return dict(
    seed=0,
    model=dict(kind="encoder_decoder", d_model=16, d_ff=16, reduction=dict(kind="delete_gate")),
    objective=dict(kind="sequence_to_sequence", **objective),
    train=dict(steps=1),
    schedule=dict(kind="constant"),
    data=dict(kind="diagnostic", task="copy", batch_size=6, seq_len=64),
    optimizer=dict(kind="adamw", learning_rate=1e-3),
  )


@pytest.mark.parametrize(
  "objective, message",
  [
    (dict(capacities=()), "has no bucket"),
    (dict(capacities=(16, 32)), "ends below the 64 tokens of a buffer"),
    (dict(rows_per_buffer=4), "does not divide the 6 rows"),
    (dict(overflow="error"), "the one size that must suffice"),
    (dict(controller=dict(target=1.0)), "target = 1.0: wanted 0 or more, below 1"),
  ],
)
def test_impossible_settings_are_refused_before_anything_runs(objective, message):
  with pytest.raises(ConfigError, match=message):
    check(run_config(config(**objective)), 1)
