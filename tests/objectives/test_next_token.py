"""Next-token loss: weighted sums, the z term, and nothing from positions of weight zero."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.layers.attention import AttentionConfig
from jaxlm.models.decoder import DecoderConfig
from jaxlm.objectives.next_token import NextToken

CFG = DecoderConfig(vocab_size=13, d_model=8, num_layers=1, mixer=AttentionConfig(2))
MODEL = CFG.build()
TOKENS = jax.random.randint(jax.random.key(0), (2, 6), 0, 13)
BATCH = dict(
  tokens=TOKENS,
  targets=jnp.roll(TOKENS, -1, 1),
  segment_ids=jnp.ones_like(TOKENS),
  positions=jnp.broadcast_to(jnp.arange(6)[None], (2, 6)),
  loss_weights=jnp.asarray([[1, 1, 1, 1, 1, 0], [2, 0.5, 0, 0, 0, 0]], jnp.float32),
)
PARAMS = jax.tree.map(lambda x: 20 * x, nn.unbox(MODEL.init(jax.random.key(1), TOKENS))["params"])


def loss(objective, params=PARAMS, **changes):
  return objective.loss(MODEL, params, {**BATCH, **changes}, None, {}, train=True)


def test_loss_is_the_weighted_sum_of_negative_log_probabilities():
  log_p = jax.nn.log_softmax(MODEL.apply({"params": PARAMS}, TOKENS))
  nll = -jnp.take_along_axis(log_p, BATCH["targets"][..., None], -1)[..., 0]
  pair, metrics, *_ = loss(NextToken())
  np.testing.assert_allclose(pair.sum, jnp.sum(nll * BATCH["loss_weights"]), rtol=1e-5)
  assert pair.weight == 7.5 and metrics["loss"] is pair and set(metrics) == {"loss"}


def test_z_loss_adds_the_squared_log_denominator_and_is_reported_apart():
  plain, *_ = loss(NextToken())
  pair, metrics, *_ = loss(NextToken(z_loss=0.1))
  z = jax.nn.logsumexp(MODEL.apply({"params": PARAMS}, TOKENS), axis=-1)
  np.testing.assert_allclose(metrics["z"].sum, jnp.sum(z**2 * BATCH["loss_weights"]), rtol=1e-5)
  np.testing.assert_allclose(pair.sum, plain.sum + 0.1 * metrics["z"].sum, rtol=1e-6)
  np.testing.assert_allclose(metrics["loss"].sum, plain.sum, rtol=1e-6)


def test_targets_of_weight_zero_change_neither_loss_nor_gradient():
  other = jnp.where(BATCH["loss_weights"] == 0, (BATCH["targets"] + 3) % 13, BATCH["targets"])
  grad = jax.grad(lambda p, targets: loss(NextToken(z_loss=0.1), p, targets=targets)[0].sum)
  jax.tree.map(np.testing.assert_array_equal, grad(PARAMS, BATCH["targets"]), grad(PARAMS, other))


def test_halves_of_a_batch_add_up_to_the_whole():
  def half(b):
    return {k: v[b : b + 1] for k, v in BATCH.items()}

  whole, parts = (
    loss(NextToken())[0],
    loss(NextToken(), **half(0))[0] + loss(NextToken(), **half(1))[0],
  )
  np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_a_negative_z_loss_is_refused():
  with pytest.raises(ConfigError, match="z_loss = -1"):
    NextToken(z_loss=-1.0)
