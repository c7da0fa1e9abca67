"""Block diffusion: its ends are left to right and masked diffusion; caches change nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError, build
from jaxlm.data.text import TextData
from jaxlm.generation.base import Options, Prompt
from jaxlm.generation.engine import block_policy, guidance
from jaxlm.generation.engine.blocks import Blocks
from jaxlm.generation.engine.elastic import Elastic
from jaxlm.generation.sampling import GREEDY
from jaxlm.models.base import init
from jaxlm.models.masked_diffusion import MaskedDiffusionConfig
from jaxlm.objectives.block_diffusion import BlockDiffusion, bound, noise_levels
from jaxlm.objectives.masked_diffusion import masked_nll

V, MASK, T = 9, 8, 8
TEXT = np.random.default_rng(0).integers(0, MASK, (2, T)).astype(np.int32)


@pytest.fixture(scope="module")
def model():
  config = build(
    MaskedDiffusionConfig,
    dict(
      vocab_size=V, d_model=16, num_layers=2, num_heads=2, d_cond=8, residual="corrected",
      mlp=dict(d_ff=32),
    ),
  )  # fmt: skip
  params = nn.unbox(jax.jit(lambda: init(config, jax.random.key(0)))())
  noise = jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params
  )
  return config, noise


def apply(model, method, *args):
  config, params = model
  return jax.jit(lambda p, *a: config.build().apply({"params": p}, *a, method=method))(
    params, *args
  )


def test_blocks_of_one_token_are_left_to_right(model):
  """The loss is the sum of -log p(x_i | x_<i), each from a pass of its own with a cache."""
  config, params = model
  found = bound(
    config.build(), params, jnp.asarray(TEXT), jnp.ones((2, T), bool), jnp.ones((2, T)),
    jnp.ones(2, jnp.int32), MASK, jnp.ones((2, T)),
  )  # fmt: skip
  step = jax.jit(lambda x, s: config.build().apply({"params": params}, x, s, method="extend"))
  state, want = config.init_state(2, T), 0.0
  for t in range(T):
    logits, _ = step(jnp.full((2, 1), MASK), state)
    log_p = jax.nn.log_softmax(logits[:, 0].at[:, MASK].set(-jnp.inf))
    want -= float(jnp.sum(log_p[jnp.arange(2), TEXT[:, t]]))
    _, state = step(jnp.asarray(TEXT[:, t : t + 1]), state)
  assert float(found) == pytest.approx(want, rel=1e-5)


def test_one_block_of_the_whole_row_is_masked_diffusion(model):
  """Against the network over the noisy row alone, with the weights of the masked-diffusion loss."""
  config, params = model
  masked = np.random.default_rng(1).random((2, T)) < 0.6
  t_B = jnp.asarray([0.6, 0.6])
  found = bound(
    config.build(), params, jnp.asarray(TEXT), jnp.asarray(masked), jnp.broadcast_to(t_B[:, None], (2, T)),
    jnp.full(2, T), MASK, jnp.ones((2, T)),
  )  # fmt: skip
  noisy = jnp.where(masked, MASK, TEXT)
  logits = apply(model, "__call__", noisy, jnp.zeros(2))
  log_p = jax.nn.log_softmax(logits.at[..., MASK].set(-jnp.inf))
  log_p = jnp.take_along_axis(log_p, jnp.asarray(TEXT)[..., None], 2)[..., 0]
  want = masked_nll(log_p, jnp.asarray(masked, jnp.float32), t_B).sum
  assert float(found) == pytest.approx(float(want), rel=1e-5)


def test_a_cached_block_has_the_logits_of_the_whole_pass(model):
  config, params = model
  C, block = 4, 1
  noisy = np.full_like(TEXT, MASK)
  noisy[:, 5] = TEXT[:, 5]
  want = apply(model, "block_logits", jnp.asarray(noisy), jnp.asarray(TEXT), jnp.full(2, C))
  state = config.init_state(2, T)
  _, state = apply(model, "extend", jnp.asarray(TEXT[:, :C]), state)
  got, _ = apply(model, "extend", jnp.asarray(noisy[:, C:]), state)
  np.testing.assert_allclose(got, want[:, block * C :], atol=2e-5)


def test_noise_levels_are_stratified_and_one_per_block():
  t_BT = np.asarray(noise_levels(jax.random.key(0), jnp.asarray([4, 4, 1]), 8, 0.1, 0.9))
  assert (t_BT[:2, :4] == t_BT[:2, :1]).all() and (t_BT[:2, 0] != t_BT[:2, 4]).all()
  assert (t_BT[2] == 1).all() and (t_BT[:2] >= 0.1).all() and (t_BT[:2] <= 0.9).all()
  # Blocks of 4, 3 and 8 of 8 tokens: 2 + 3 + 1 blocks, one in each sixth of the interval.
  for seed in range(4):
    t_BT = np.asarray(noise_levels(jax.random.key(seed), jnp.asarray([4, 3, 8]), 8, 0.2, 0.8))
    of_blocks = [*t_BT[0, ::4], *t_BT[1, ::3], t_BT[2, 0]]
    assert sorted(np.floor((np.asarray(of_blocks) - 0.2) / 0.1).astype(int)) == list(range(6))
  with pytest.raises(ConfigError, match="clip_low <= clip_high"):
    BlockDiffusion(mask=8, clip_low=0.5, clip_high=0.2)


def test_sampling_with_a_cache_is_sampling_without(model):
  """The engine's greedy blocks against passes over both copies of the whole row."""
  config, params = model
  C, prompt = 4, TEXT[0, :4].tolist()
  engine = Blocks(config, MASK, GREEDY, block_len=C, steps=2, order="confidence")
  [got] = engine.generate(params, [prompt], 4).answers
  row = np.asarray([prompt + [MASK] * 4], np.int32)
  for step in range(2):
    logits = np.array(
      apply(model, "block_logits", jnp.asarray(row), jnp.asarray(row), jnp.full(1, C))
    )[0]
    logits[:, MASK] = -np.inf
    masked = row[0] == MASK
    sure = np.where(masked, np.asarray(jax.nn.log_softmax(logits)).max(1), -np.inf)
    for at in np.argsort(-sure, kind="stable")[: masked.sum() - int(4 * (1 - (step + 1) / 2))]:
      row[0, at] = logits[at].argmax()
  assert got.tolist() == row[0, 4:].tolist()
  shots = list(engine.watch(params, prompt, 4))
  assert shots[-1].final and list(shots[-1].sequence)[4:] == got.tolist()
  assert any(MASK in list(s.sequence) for s in shots)  # it was seen while it grew


def test_a_policy_sees_the_last_token_of_each_prompt(model):
  config, params = model
  seen = []

  def policy(hidden_BD, keys_B):
    seen.append(np.asarray(hidden_BD))
    return jnp.full(len(hidden_BD), 2)

  engine = Blocks(config, MASK, GREEDY, block_len=4, policy=policy)
  engine.generate(params, [TEXT[0, :6].tolist(), TEXT[1, :2].tolist()], 2)
  _, state = apply(model, "extend", jnp.asarray(TEXT[:1, :4]), config.init_state(1, T))
  _, sown = config.build().apply(
    {"params": params}, TEXT[:1, 4:6], state, method="extend", mutable=["intermediates"]
  )
  np.testing.assert_allclose(seen[0][0], sown["intermediates"]["final"][0][0, -1], atol=1e-4)
  assert np.abs(seen[0][1]).max() > 0  # the shorter row keeps its own


@pytest.mark.slow
def test_a_row_draws_the_same_whatever_is_beside_it(model):
  config, params = model
  engine = Blocks(config, MASK, block_len=4)
  together = engine.generate(params, TEXT[:, :3].tolist(), 8, seed=3).answers
  alone = engine.generate(params, TEXT[:1, :3].tolist(), 8, seed=3).answers
  assert together[0].tolist() == alone[0].tolist() and MASK not in together[0]


def test_the_mask_is_the_objective_s_where_the_data_have_none(model):
  config, data = model[0], TextData("mini:en", T, 2)
  for engine in (Blocks, Elastic):
    assert engine.from_command(config, data, Options(), BlockDiffusion(MASK)).mask == MASK
    with pytest.raises(ConfigError, match="neither the data nor the objective have one"):
      engine.from_command(config, data, Options())


def test_elastic_fills_all_the_room_that_a_prompt_without_masks_has(model):
  config, params = model
  [answer] = Elastic(config, MASK).generate(params, [TEXT[0, :3].tolist()], 5).answers
  assert len(answer) == 5 and MASK not in answer


def test_the_policy_gradient_is_that_of_finite_differences():
  """E over the actions of the estimator, by enumeration, against J at shifted parameters."""
  params = block_policy.init(jax.random.key(0), 3, 4, width=5)
  params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
  h, bounds = jnp.asarray([[0.3, -1.0, 0.5]]), (1.0, 1.5, 0.8, 2.0)
  reward = jnp.asarray(
    [block_policy.reward(b, n, 3, 0.4) for b, n in zip(bounds, (1, 2, 4, 8), strict=True)]
  )
  np.testing.assert_allclose(reward, [-2.2, -2.1, -1.1, -2.15], rtol=1e-6)

  def expected(params):
    return jnp.sum(jax.nn.softmax(block_policy.policy_logits(params, h))[0] * reward)

  p = jax.nn.softmax(block_policy.policy_logits(params, h))[0]
  estimates = [
    jax.grad(block_policy.surrogate)(params, h, jnp.asarray([a]), reward[a : a + 1] - 0.7)
    for a in range(4)
  ]
  mean = jax.tree.map(lambda *g: -sum(p[a] * g[a] for a in range(4)), *estimates)
  for name, at in (("w_in", (1, 2)), ("w_out", (3, 1)), ("b_out", (2,))):
    up, down = (params | {name: params[name].at[at].add(e)} for e in (1e-2, -1e-2))
    slope = (expected(up) - expected(down)) / 2e-2
    assert float(mean[name][at]) == pytest.approx(float(slope), abs=2e-4)


def test_a_policy_learns_which_length_pays():
  hidden = jnp.asarray(np.eye(2, 4), jnp.float32)
  reward = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
  params, _ = block_policy.train(jax.random.key(0), hidden, reward, steps=200, learning_rate=3e-2)
  policy = block_policy.BlockPolicy((1, 4, 16), params)
  assert policy(hidden, None).tolist() == [1, 16]


def test_an_engine_decodes_with_a_learned_policy(model):
  config, params = model
  own = block_policy.init(jax.random.key(0), config.d_model, 2)
  policy = block_policy.BlockPolicy((2, 4), own | {"b_out": jnp.asarray([1.0, 0.0])})
  engine = Blocks(config, MASK, GREEDY, block_len=4, policy=policy)
  batch = engine.single(TEXT[0, :3].tolist(), 5)
  counts = [int(count_B[0]) for _, count_B, _, _ in engine.stream(params, batch)]
  assert counts == [2, 4, 5]  # blocks of 2, the last one cut by the room


def test_guidance_by_a_gradient_is_exact_for_a_linear_classifier():
  w = jnp.asarray(np.random.default_rng(0).normal(size=(T, V)), jnp.float32)
  log_c = lambda x: jnp.einsum("bcv,cv->b", x, w)  # noqa: E731
  logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, T, V)), jnp.float32)
  x = jnp.asarray(TEXT)
  np.testing.assert_allclose(
    guidance.first_order(log_c, x, logits, 2.0), guidance.exact(log_c, x, logits, 2.0), atol=1e-5
  )
  np.testing.assert_array_equal(guidance.first_order(log_c, x, logits, 0.0), logits)


def uncached(model, tokens, window, confidence):
  """Every step over the whole row."""
  row, steps = tokens.copy(), 0
  while (row == MASK).any():
    logits = np.array(apply(model, "__call__", jnp.asarray(row[None]), jnp.zeros(1)))[0]
    logits[:, MASK] = -np.inf
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
    at = np.flatnonzero(row == MASK)[:window]
    sure = p[at].max(1)
    for i, s in zip(at, sure):
      if s > confidence or s == sure.max():
        row[i] = logits[i].argmax()
    steps += 1
  return row, steps


def test_refreshing_always_is_the_decoder_without_a_cache(model):
  config, params = model
  tokens = np.concatenate([TEXT[0, :3], np.full(9, MASK)]).astype(np.int32)
  want, steps = uncached(model, tokens, 4, 0.6)
  always = Elastic(config, MASK, window=4, gamma=1.0, confidence=0.6)
  found, cost = always.fill(params, tokens)
  assert found.tolist() == want.tolist() and cost.steps == steps and cost.share == 1.0
  never, cheap = Elastic(config, MASK, window=4, gamma=1e-6, confidence=0.6).fill(params, tokens)
  assert MASK not in never and cheap.share < 1
  [row] = always.generate(params, [Prompt(TEXT[0, :3].tolist(), num_new=9)], 9).rows
  assert row.sequence.tolist() == want.tolist() and row.begin == 3
