"""Position encodings: one file each, whatever they need; controls of the long-context table."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.kernels.attention import LinearBias
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mixer import Context
from jaxlm.layers.positions import Encoded, Position
from jaxlm.layers.positions.additive import sinusoids
from jaxlm.layers.positions.alibi import alibi_slopes
from jaxlm.layers.positions.cable import CABLE, running_sum
from jaxlm.layers.positions.rope import NTK, Interpolation, Llama3, RoPE, YaRN, ladder
from jaxlm.layers.weights import ones, weights
from jaxlm.models.decoder import DecoderConfig


@dataclasses.dataclass(frozen=True)
class LearnedSlope(Position):
  """What a newcomer writes: ALiBi with learned slopes, and keys damped by the number of tokens
  seen.
  """

  def encode(self, module, heads, q_BTNH, k_BTKH, x_BTD, context, shared, state):
    valid_BT = (context.segment_ids_BT != 0).astype(jnp.float32)
    count_BT = jnp.cumsum(valid_BT, axis=1) + (0.0 if state is None else state[:, None])
    return Encoded(q_BTNH, k_BTKH / (1 + count_BT)[..., None, None], (), count_BT[:, -1])

  def bias(self, module, heads, query_info, key_info, shared):
    return LinearBias(weights(module)("slope", (heads.num_heads,), ("heads",), init=ones))

  def init_state(self, heads, batch_size):
    return jnp.zeros(batch_size, jnp.float32)


def test_a_new_encoding_is_one_dataclass_for_training_and_decoding():
  cfg = DecoderConfig(
    vocab_size=11, d_model=8, num_layers=2, mixer=AttentionConfig(2), position=LearnedSlope()
  )
  model, tokens = cfg.build(), jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
  params = nn.unbox(model.init(jax.random.key(1), tokens))
  params = jax.tree.map(lambda x: 5 * x, params)
  assert params["params"]["blocks"]["mixer"]["slope"].shape == (2, 2)
  whole, state, steps = model.apply(params, tokens), cfg.init_state(2, 6), []
  step = jax.jit(lambda token, state: model.apply(params, token, state, method="extend"))
  for t in range(6):
    logits, state = step(tokens[:, t : t + 1], state)
    steps.append(logits)
  np.testing.assert_allclose(jnp.concatenate(steps, 1), whole, atol=1e-5)
  grad = jax.grad(lambda p: model.apply(p, tokens, tokens, method="score").log_prob_BT.sum())(
    params
  )
  assert np.all(grad["params"]["blocks"]["mixer"]["slope"] != 0)


def test_scalings_change_the_slow_pairs_and_keep_the_fast():
  plain = ladder(10000.0, 64)
  np.testing.assert_allclose(Interpolation(4.0)(10000.0, 64)[0], plain / 4)
  ntk, _ = NTK(4.0)(10000.0, 64)
  np.testing.assert_allclose([ntk[0], ntk[-1]], [plain[0], plain[-1] / 4])
  yarn, factor = YaRN(4.0, 512)(10000.0, 64)
  np.testing.assert_allclose(
    [yarn[0], yarn[-1], factor], [plain[0], plain[-1] / 4, 0.1 * np.log(4) + 1]
  )
  llama, _ = Llama3(8.0, 8192)(500000.0, 128)
  plain = ladder(500000.0, 128)
  turns = 8192 * plain / (2 * np.pi)
  np.testing.assert_allclose(llama[turns > 4], plain[turns > 4])
  np.testing.assert_allclose(llama[turns < 1], plain[turns < 1] / 8)
  assert np.all(np.diff(llama) < 0)


def test_yarn_scales_scores_by_the_square_of_its_factor():
  cfg = AttentionConfig(2, position=RoPE(scaling=YaRN(4.0, 16, attention_factor=1.5)))
  plain = AttentionConfig(2, position=RoPE(scaling=YaRN(4.0, 16, attention_factor=1.0)))
  x = jax.random.normal(jax.random.key(0), (1, 5, 8))
  context = Context(jnp.ones((1, 5), jnp.int32), jnp.arange(5)[None])
  tree = plain.build(8, "float32").init(jax.random.key(1), x, context)

  def q(c):
    return c.build(8, "float32").apply(tree, x, context, mutable=["intermediates"])[1][
      "intermediates"
    ]["q"][0]

  np.testing.assert_allclose(q(cfg), 1.5 * q(plain), rtol=1e-5)


def test_slopes_of_twelve_heads_are_eight_and_every_second_of_sixteen():
  np.testing.assert_allclose(
    alibi_slopes(12), [*(2.0 ** -np.arange(1, 9)), *(2.0 ** -np.arange(0.5, 4, 1.0))]
  )


def test_sinusoids_at_zero_alternate_zero_and_one():
  table = np.asarray(sinusoids(jnp.arange(3), 6))
  np.testing.assert_allclose(table[0], [0, 1, 0, 1, 0, 1])
  np.testing.assert_allclose(table[2, 2], np.sin(2 / 10000 ** (2 / 6)), rtol=1e-6)


def test_a_base_of_one_is_refused():
  with pytest.raises(ConfigError, match="theta = 1.0"):
    RoPE(theta=1.0)


def test_the_penalty_of_a_pair_does_not_depend_on_what_stands_before_it():
  """CABLE: sums of 30,000 as exact as sums of 3, with their gradient."""
  rng, length, late = np.random.default_rng(0), 64, 4000
  near = rng.uniform(0, 1, (1, length, 2)).astype(np.float32)
  far = np.concatenate([np.full((1, late, 2), 7.3, np.float32), near], 1)

  def biases(total):
    return CABLE().bias(None, None, total, total, None)

  def scores(total):
    return -sum(
      bias.add(jnp.zeros((1, 2, 1, 1)), None) for bias in biases(jax.tree.map(jnp.negative, total))
    )

  def pairs(steps, start):
    return scores(
      jax.tree.map(lambda x_BTN: x_BTN[:, start:], running_sum(jnp.asarray(steps), None))
    )

  sums = np.cumsum(near.astype(np.float64), 1).swapaxes(1, 2)
  want = sums[..., :, None] - sums[..., None, :]
  for got in (pairs(near, 0), pairs(far, late)):
    np.testing.assert_allclose(
      got, want, atol=1e-5
    )  # of sums to 30: 1e-6 each; a float32 running sum is wrong by 2e-3
  weights = rng.standard_normal(want.shape)
  grad = jax.grad(lambda steps: jnp.sum(pairs(steps, late) * weights))(far)[:, late:]
  t, q, k = np.ogrid[:length, :length, :length]
  spans = ((k < t) & (t <= q)).astype(np.float64) - ((q < t) & (t <= k))
  np.testing.assert_allclose(grad, np.einsum("bnqk,tqk->btn", weights, spans), rtol=1e-4, atol=1e-4)


def test_sums_continue_from_a_state():
  steps = jnp.asarray(np.random.default_rng(0).uniform(0, 3, (2, 20, 3)), jnp.float32)
  whole, first = running_sum(steps, None), running_sum(steps[:, :13], None)
  second = running_sum(steps[:, 13:], jax.tree.map(lambda x_BTN: x_BTN[:, -1], first))
  assert bool(jnp.all(jnp.floor(whole.whole) == whole.whole)) and bool(
    jnp.all((whole.rest >= 0) & (whole.rest < 1))
  )

  def total(x):
    return x.whole + x.rest

  np.testing.assert_allclose(
    jnp.concatenate([total(first), total(second)], 1), total(whole), atol=1e-5
  )
