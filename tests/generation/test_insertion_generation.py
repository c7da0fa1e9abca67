"""The insertion sampler: its law, its buffer, its refusals; and the small golden cases through
verify.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.generation.insertion import (
  Filter,
  Inserter,
  InsertionSampling,
  Sequences,
  choose_in_stages,
  choose_joint,
  insert,
)
from jaxlm.interop.verify import verify
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.positions.additive import Learned
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models.insertion import InsertionConfig

GOLDEN = sorted((pathlib.Path(__file__).parents[1] / "golden" / "ilm").glob("*.npz"))
CONFIG = InsertionConfig(
  vocab_size=12, d_model=16, num_layers=1, mixer=AttentionConfig(2, causal=False), position=RoPE()
)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_case(path):
  row = verify(path)
  assert row.passed, row.message or [c for c in row.comparisons if not c.passed]


def test_the_two_stage_draw_has_the_enumerated_joint_distribution():
  z_LV = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
  n, key = 20_000, jax.random.key(0)
  z_BLV = jnp.broadcast_to(z_LV[None], (n, 3, 4))

  def draw(i):
    return lambda shape: jax.random.uniform(jax.random.fold_in(key, i), shape)

  slot, token = choose_in_stages(
    jax.nn.logsumexp(z_BLV, -1),
    lambda s: z_BLV[jnp.arange(n), s],
    InsertionSampling(Filter()),
    draw(0),
    draw(1),
  )
  want = n * np.asarray(jax.nn.softmax(z_LV.reshape(-1)))
  seen = np.bincount(np.asarray(slot) * 4 + np.asarray(token), minlength=12)
  assert np.sum((seen - want) ** 2 / want) < 31.3  # 11 degrees of freedom, p = 0.001


def test_joint_top_k_draws_the_k_best_pairs_only():
  z_LV = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
  best = set(np.argsort(-z_LV.reshape(-1))[:3])
  z_BLV = jnp.broadcast_to(jnp.asarray(z_LV)[None], (500, 3, 4))
  slot, token = choose_joint(
    z_BLV, Filter(top_k=3), lambda shape: jax.random.uniform(jax.random.key(0), shape)
  )
  assert set(np.asarray(slot * 4 + token)) == best


def test_an_insertion_moves_what_lies_behind_it_and_opens_its_own_slot():
  rows = Sequences(
    jnp.asarray([[5, 6, 7, 0], [5, 6, 7, 0]]),
    jnp.asarray([3, 3]),
    jnp.asarray([[True, False, True, False]] * 2),
    jnp.ones(2, bool),
    jnp.zeros((), jnp.int32),
  )
  out = insert(rows, jnp.asarray([1, 1]), jnp.asarray([9, 9]), jnp.asarray([True, False]))
  np.testing.assert_array_equal(out.tokens_BL, [[5, 6, 9, 7], [5, 6, 7, 0]])
  np.testing.assert_array_equal(out.blocked_BL[0], [True, False, False, True])
  np.testing.assert_array_equal(out.length_B, [4, 3])


@pytest.mark.slow
def test_growing_the_buffer_changes_nothing_and_closed_slots_stay_closed():
  inserter = Inserter(
    CONFIG, suppressed=(0, 1), pad=0, max_len=40, max_steps=38, stop_threshold=0.999
  )
  params = CONFIG.build().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  prompts, blocked = [[1, 2, 3], [1, 2]], [[True, False, True], [True, False]]
  grown = inserter.generate(params, inserter.start(prompts, blocked), jax.random.key(0))
  full = inserter.generate(params, inserter.start(prompts, blocked, buffer=41), jax.random.key(0))
  np.testing.assert_array_equal(grown.length_B, full.length_B)
  np.testing.assert_array_equal(grown.tokens_BL[:, :40], full.tokens_BL[:, :40])
  assert int(grown.length_B[0]) == 40
  assert int(grown.tokens_BL[0, 39]) == 3  # nothing behind the closed last token


def test_rows_that_stop_early_are_set_aside_and_come_back_in_their_place():
  inserter = Inserter(
    CONFIG, suppressed=(0, 1), pad=0, max_len=40, max_steps=38, stop_threshold=0.999
  )
  params = CONFIG.build().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  prompts = [
    [1, *[2 + b % 9] * (38 if b % 3 else 2 + b)] for b in range(9)
  ]  # two in three soon meet max_len
  together = inserter.generate(params, inserter.start(prompts), jax.random.key(0))
  for b in range(0, 9, 2):
    alone = inserter.generate(
      params, inserter.start(prompts[b : b + 1], buffer=41), jax.random.key(0)
    )
    n = int(alone.length_B[0])
    assert int(together.length_B[b]) == n == 40
    np.testing.assert_array_equal(together.tokens_BL[b, :n], alone.tokens_BL[0, :n])


@pytest.mark.parametrize(("first", "most"), [(False, 12), (True, 12), (True, 11)])
def test_a_table_of_learned_positions_may_be_filled_to_its_last_place(first, most):
  config = dataclasses.replace(CONFIG, position=Learned(max_len=12))
  inserter = Inserter(
    config,
    suppressed=(0, 1),
    pad=0,
    max_len=most,
    max_steps=30,
    stop_threshold=0.999,
    force_first=first,
  )
  params = config.build().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  rows = inserter.generate(params, inserter.start([[1, 2]]), jax.random.key(0))
  assert rows.length_B.tolist() == [most] and rows.tokens_BL.shape[1] <= 12


def test_a_row_never_exceeds_its_own_length_cap():
  inserter = Inserter(
    CONFIG, suppressed=(0, 1), pad=0, max_len=40, max_steps=38, stop_threshold=0.999
  )
  params = CONFIG.build().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  rows = inserter.generate(params, inserter.start([[1, 2]] * 3, most=[2, 5, 99]), jax.random.key(0))
  assert rows.length_B.tolist() == [2, 5, 40]
  with pytest.raises(ConfigError, match="at least the prompt's own"):
    inserter.start([[1, 2]], most=[1])


@pytest.mark.parametrize(
  ("prompts", "blocked", "words"),
  [
    ([[1] * 41], None, "41 tokens, the buffer"),
    ([[1, 2]], [[True, True]], "no open slot"),
    ([[1, 99]], None, "token 99, outside the vocabulary of 12"),
    ([[]], None, "prompt 0 is empty"),
  ],
)
def test_impossible_prompts_are_refused_with_a_sentence(prompts, blocked, words):
  inserter = Inserter(CONFIG, suppressed=(0, 1), pad=0, max_len=40, max_steps=5)
  with pytest.raises(ConfigError, match=words):
    inserter.start(prompts, blocked)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.5])
def test_a_threshold_outside_the_unit_interval_is_refused(threshold):
  with pytest.raises(ConfigError, match="stop_threshold"):
    Inserter(CONFIG, suppressed=(), pad=0, max_len=8, max_steps=5, stop_threshold=threshold)


def test_causal_attention_is_refused():
  with pytest.raises(ConfigError, match="causal=False"):
    InsertionConfig(vocab_size=12, d_model=16, num_layers=1, mixer=AttentionConfig(2))
