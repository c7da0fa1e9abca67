"""Properties of the H-Net: causal, independent of its capacity and its neighbours, and the same
when streamed.
"""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import GREEDY
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.positions.rope import RoPE
from jaxlm.layers.routers import ExternalBoundaries, FixedStride, SpaceBoundaries
from jaxlm.models.hnet import HNetConfig, JoinConfig, StageConfig

pytestmark = pytest.mark.slow  # compiling whole models takes minutes on two cores

B, T = 3, 24


def stage(width, window=None, **options):
  return StageConfig(
    width,
    128,
    AttentionConfig(2, position=RoPE(rotary_dim=width // 4), window=window),
    Mamba2Config(d_state=8, head_dim=16),
    **options,
  )


@functools.cache
def model():
  """Two chunkings, a windowed attention in the middle; random projections, so that the routers do
  cut.
  """
  cfg = HNetConfig(
    "m1 [T1m1 [T1] m1T1] m1", (stage(16), stage(16, window=4), stage(32)), vocab_size=50
  )
  params = nn.unbox(cfg.build().init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
  keys = iter(jax.random.split(jax.random.key(1), 100))
  # Away from the zeros and identities of the initialisation.
  return cfg, jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), params)


@functools.cache
def apply(method, **static):
  cfg, params = model()
  return jax.jit(
    lambda *args, **more: cfg.build().apply(
      {"params": params}, *args, method=method, **static, **more
    )
  )


def tokens(seed=0, shape=(B, T)):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 50, shape), jnp.int32)


def test_the_test_model_cuts_somewhere_and_not_everywhere():
  _, infos, _ = apply("run")(tokens())
  for info in infos:
    share = float(info.boundary_BT.sum() / info.valid_BT.sum())
    assert 0.2 < share < 0.9


def test_logits_depend_on_the_past_only():
  changed = tokens().at[:, 15:].set(7)
  np.testing.assert_array_equal(apply("run")(tokens())[0][:, :15], apply("run")(changed)[0][:, :15])


def test_the_capacity_changes_nothing_while_the_chunks_fit():
  whole, infos, _ = apply("run")(tokens())
  fits = tuple(int(info.count_B.max()) for info in infos)
  logits, again, _ = apply("run", capacities=fits)(tokens())
  chex.assert_trees_all_close(logits, whole, atol=2e-5)  # float32 sums in another order
  assert not any(bool(info.overflow_B.any()) for info in again)
  _, short, _ = apply("run", capacities=(fits[0] - 1, fits[1]))(tokens())
  assert bool(short[0].overflow_B.any())


def test_documents_packed_in_a_row_are_as_if_alone():
  row = tokens(1, (1, 17))
  segments = jnp.asarray([[1] * 6 + [2] + [3] * 10], jnp.int32)
  packed, _, _ = apply("run")(row, segments)
  alone = [apply("run")(row[:, i:j])[0] for i, j in ((0, 6), (6, 7), (7, 17))]
  chex.assert_trees_all_close(packed, jnp.concatenate(alone, 1), atol=2e-5)


def test_rows_that_share_a_chunk_buffer_do_not_meet():
  cfg, params = model()
  shared = dataclasses.replace(cfg, join=JoinConfig(rows_per_buffer=3))
  row = tokens()
  segments = jnp.ones((B, T), jnp.int32).at[1, 5:].set(2).at[2, 20:].set(0)
  want, infos, _ = apply("run")(row, segments)
  total = int(infos[0].count_B.sum())
  got, merged = jax.jit(
    lambda t, s: shared.build().apply(
      {"params": params}, t, s, capacities=(total, total), method="run"
    )
  )(row, segments)
  chex.assert_trees_all_close(
    jnp.where(segments[..., None] > 0, got - want, 0), jnp.zeros_like(want), atol=3e-5
  )
  assert merged[0].count_B.tolist() == [total] and not bool(merged[0].overflow_B.any())


def test_prefills_and_steps_of_ragged_rows_equal_the_parallel_pass():
  cfg, _ = model()
  whole, infos, _ = apply("run")(tokens())
  run = apply("run")

  def extend(tokens, state, segments):
    return run(tokens, segments, state=state)

  # Rows of 9, 1 and 4 tokens first, then seven more each in one piece, then one by one.
  starts = np.asarray([9, 1, 4])
  state = cfg.init_state(B, T)
  segments = jnp.asarray(np.arange(9)[None] < starts[:, None], jnp.int32)
  logits, _, state = extend(tokens()[:, :9], state, segments)
  got = [[logits[b, :n]] for b, n in enumerate(starts)]

  def take(at, n):
    return jnp.stack([tokens()[b, at[b] : at[b] + n] for b in range(B)])

  logits, _, state = extend(take(starts, 7), state, jnp.ones((B, 7), jnp.int32))
  for b in range(B):
    got[b].append(logits[b])
  for k in range(8):
    logits, step_infos, state = extend(take(starts + 7 + k, 1), state, jnp.ones((B, 1), jnp.int32))
    for b in range(B):
      got[b].append(logits[b])
      assert bool(step_infos[0].boundary_BT[b, 0]) == bool(
        infos[0].boundary_BT[b, starts[b] + 7 + k]
      )
  for b, n in enumerate(starts):
    chex.assert_trees_all_close(jnp.concatenate(got[b]), whole[b, : n + 15], atol=5e-5)


def test_rows_generate_what_they_would_alone_and_a_finished_row_rests():
  cfg, params = model()
  engine = LeftToRight(cfg, GREEDY)
  prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
  together = engine.generate(params, prompts, 6).answers
  for prompt, row in zip(prompts, together):
    np.testing.assert_array_equal(engine.generate(params, [prompt], 6).answers[0], row)


@pytest.mark.parametrize(
  "width", [4, 2]
)  # 10 chunks of 40 positions fit the 15 slots of a short run, 20 do not
def test_a_long_prefill_equals_the_parallel_pass_whether_its_chunks_are_few_or_many(width):
  cfg = HNetConfig(
    "m1 [T1m1 [T1] m1] m1",
    (stage(16, router=FixedStride(width)), stage(16, window=4), stage(16)),
    vocab_size=50,
  )
  params = nn.unbox(cfg.build().init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
  params = jax.tree.map(
    lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), params
  )
  row, segments = tokens(2, (2, 44)), jnp.ones((2, 40), jnp.int32).at[1, 33:].set(0)
  whole, infos, _ = jax.jit(lambda t: cfg.build().apply(params, t, method="run"))(row)
  extend = jax.jit(lambda t, state, s: cfg.build().apply(params, t, s, state=state, method="run"))
  logits, found, state = extend(row[:, :40], cfg.init_state(2, 44), segments)
  chex.assert_trees_all_close(logits[0], whole[0, :40], atol=5e-5)
  chex.assert_trees_all_close(logits[1, :33], whole[1, :33], atol=5e-5)
  count = 40 // width
  np.testing.assert_array_equal(found[1].boundary_BT[0, :count], infos[1].boundary_BT[0, :count])
  assert found[1].valid_BT.shape == (2, 40) and found[1].valid_BT.sum(1).tolist() == [
    count,
    -(-33 // width),
  ]
  for t in range(4):
    after, _, state = extend(
      jnp.stack([row[0, 40 + t], row[1, 33 + t]])[:, None], state, jnp.ones((2, 1), jnp.int32)
    )
    chex.assert_trees_all_close(
      after[:, 0], jnp.stack([whole[0, 40 + t], whole[1, 33 + t]]), atol=5e-5
    )


@pytest.mark.parametrize(
  "router, want",
  [
    (FixedStride(3), [1, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1]),
    (SpaceBoundaries(), [1, 0, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0]),
  ],
)  # the second document is "f 12": its start, and its space
def test_routers_with_a_rule_cut_by_it_and_at_every_document(router, want):
  text = jnp.asarray([list(b"ab. cd e"[:8]) + list(b"f 12")], jnp.int32)
  cfg = HNetConfig("m1 [m1] m1", (stage(16, router=router), stage(16)), vocab_size=256)
  segments = jnp.asarray([[1] * 8 + [2] * 4], jnp.int32)
  (_, infos, _), _ = cfg.build().init_with_output(jax.random.key(0), text, segments, method="run")
  assert infos[0].boundary_BT[0].astype(int).tolist() == want
  np.testing.assert_array_equal(infos[0].confidence_BT, 1.0)


def test_given_boundaries_are_asked_for():
  cfg = HNetConfig(
    "m1 [m1] m1", (stage(16, router=ExternalBoundaries()), stage(16)), vocab_size=256
  )
  with pytest.raises(ValueError, match="no boundaries"):
    cfg.build().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))


def test_an_empty_document_is_refused():
  with pytest.raises(ValueError, match="empty document"):
    apply("run")(jnp.zeros((1, 0), jnp.int32))
  with pytest.raises(ValueError, match="capacity 0"):
    apply("run", capacities=(0, 4))(tokens())
