"""Speculative decoding gives what the target gives alone, in any batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.generation import Sampling
from jaxlm.generation.base import Batch, Prompt, row_keys
from jaxlm.generation.engine.same_length import SameLength, choose
from jaxlm.generation.engine.speculative import Speculative
from jaxlm.generation.engine.step import extend
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import GREEDY
from tests.generation.engine import toys

PROMPTS = [[3, 1, 4, 1, 5], [2, 7], [9, 8, 7, 6, 5, 4, 3, 2], [1]]


@pytest.fixture(scope="module")
def pair():
  config, target = toys.model()
  _, other = toys.model(seed=1)
  return config, {"target": target, "draft": toys.mixed(target, other, 0.2)}


def answers(engine, params, prompts, count, **settings):
  return [a.tolist() for a in engine.generate(params, prompts, count, **settings).answers]


def test_greedy_tokens_are_those_of_the_target_alone_in_every_batch(pair):
  config, params = pair
  alone = answers(LeftToRight(config, GREEDY), params["target"], PROMPTS, 10)
  engine = Speculative(config, config, GREEDY, num_draft=3)
  for batch_size in (1, 4):
    assert answers(engine, params, PROMPTS, 10, batch_size=batch_size) == alone


def test_rows_of_equal_length_go_together_and_get_the_same_tokens(pair):
  config, params = pair
  length, pending = np.asarray([5, 4, 5, 4, 5, 7]), np.asarray([1, 1, 2, 1, 1, 1])
  alive = np.ones(6, bool)
  assert [x.tolist() for x in choose(length, pending, alive, 4)[:1]] == [[1, 3, 6, 6]]
  rows, same = choose(length, pending, np.asarray([1, 1, 1, 0, 0, 1], bool), 3)
  assert rows.tolist() == [1, 0, 2] and not same  # no two agree: the shortest
  rows, same = choose(length, pending, np.asarray([0, 0, 0, 0, 0, 1], bool), 2)
  assert rows.tolist() == [5, 6] and same
  prompts = [*PROMPTS, [4, 4], [8]]
  alone = answers(LeftToRight(config, GREEDY), params["target"], prompts, 10)
  engine = SameLength(config, config, GREEDY, num_draft=3, group=2)
  assert answers(engine, params, prompts, 10) == alone
  batch = Batch([Prompt(p) for p in prompts], np.full(6, 10), row_keys(jax.random.key(0), 6), None)
  last, before = None, None
  for carry, same in engine.rounds(params, batch):
    calls = np.asarray(carry.committed.calls_B)
    if same is not None:
      took = calls > before[0]
      assert 1 <= took.sum() <= 2 and (not same or len(set(before[1][took])) == 1)
    before = calls, np.asarray(carry.target.length_B)
    last = same
  assert last is True  # a single row is left


def test_drafts_are_accepted_and_calls_are_saved(pair):
  config, params = pair
  engine = Speculative(config, config, GREEDY, num_draft=3)
  batch = engine.single(PROMPTS[0], 24)
  _, counts = engine.decode_counted({"target": params["target"], "draft": params["target"]}, batch)
  assert counts.block_efficiency == pytest.approx(23 / 6)  # the draft is the target: all accepted
  _, counts = engine.decode_counted(params, batch)
  assert 1 <= counts.block_efficiency < 23 / 6
  assert counts.accepted[0] + counts.calls[0] + 1 >= counts.new[0] == 24


def test_sampled_tokens_follow_the_target(pair):
  """Chi-square over all 3-token continuations of one prompt; false alarm 1e-3, seed fixed."""
  config, target = toys.model(vocab_size=5, d_model=8, num_layers=1, scale=6)
  _, draft = toys.model(vocab_size=5, d_model=8, num_layers=1, scale=6, seed=1)
  engine = Speculative(config, config, Sampling(), num_draft=2)
  found = engine.generate({"target": target, "draft": draft}, [[1, 2]] * 4000, 3, seed=5)
  wanted = toys.distribution(config, target, [1, 2], 3)
  assert toys.chi_square(found.answers, wanted) > 1e-3
  # The draft's own distribution would be seen.
  wrong = toys.distribution(config, draft, [1, 2], 3)
  assert toys.chi_square(found.answers, wrong) < 1e-9


@pytest.mark.slow
def test_100_000_draws_follow_the_target():
  """As above, of four tokens of which three come from rounds; false alarm 1e-3, seed fixed."""
  config, target = toys.model(vocab_size=5, d_model=8, num_layers=1, scale=6)
  _, draft = toys.model(vocab_size=5, d_model=8, num_layers=1, scale=6, seed=1)
  engine = Speculative(config, config, Sampling(), num_draft=2)
  params = {"target": target, "draft": draft}
  found = engine.generate(params, [[1, 2]] * 100_000, 4, batch_size=20_000, seed=7).answers
  assert toys.chi_square(found, toys.distribution(config, target, [1, 2], 4)) > 1e-3


@pytest.mark.slow
def test_a_row_draws_the_same_whatever_is_beside_it(pair):
  config, params = pair
  engine = Speculative(config, config, Sampling(temperature=0.9), num_draft=3, deterministic=True)
  together = answers(engine, params, PROMPTS[:2], 6, seed=3)
  assert answers(engine, params, PROMPTS[:1], 6, seed=3) == together[:1]


@pytest.mark.slow
def test_stops_and_limits_are_those_of_the_target_alone(pair):
  config, params = pair
  free = answers(LeftToRight(config, GREEDY), params["target"], PROMPTS, 10)
  stops = (free[0][4],)
  alone = answers(LeftToRight(config, GREEDY, stops=stops), params["target"], PROMPTS, 10)
  engine = Speculative(config, config, GREEDY, stops=stops, num_draft=4)
  assert answers(engine, params, PROMPTS, 10) == alone
  shots = list(engine.watch(params, PROMPTS[0], 10))
  assert shots[-1].final and list(shots[-1].sequence) == PROMPTS[0] + alone[0]


@pytest.mark.slow
@pytest.mark.parametrize(
  "mixer",
  [dict(kind="gla", num_heads=2, chunk=16), dict(kind="mamba2", d_state=4, head_dim=8)],
  ids=["gla", "mamba2"],
)
def test_recurrent_targets_go_back_too(mixer):
  config, target = toys.model(mixer=mixer, position="none", scale=3)
  alone = answers(LeftToRight(config, GREEDY), target, PROMPTS[:2], 6)
  draft, draft_params = toys.model(seed=2)
  engine = Speculative(config, draft, GREEDY, num_draft=2)
  params = {"target": target, "draft": draft_params}
  assert answers(engine, params, PROMPTS[:2], 6) == alone


def test_a_draft_with_another_vocabulary_is_refused_and_both_are_named(pair):
  other, _ = toys.model(vocab_size=9)
  with pytest.raises(ConfigError, match="vocabulary of 12 tokens and the draft .* one of 9"):
    Speculative(pair[0], other)
  with pytest.raises(ConfigError, match="needs a second model that drafts"):
    Speculative(pair[0])


@pytest.mark.slow
def test_480_prompts_in_batches_of_1_4_8_and_16_decode_as_the_target_alone(pair):
  config, params = pair
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 12, rng.integers(1, 30)).tolist() for _ in range(480)]
  alone = answers(
    LeftToRight(config, GREEDY, deterministic=True), params["target"], prompts, 16, batch_size=16
  )
  engine = Speculative(config, config, GREEDY, num_draft=3, deterministic=True)
  for batch_size in (1, 4, 8, 16):
    assert answers(engine, params, prompts, 16, batch_size=batch_size, max_len=64) == alone


def test_tokens_of_more_rows_than_the_state_has_are_refused():
  config, params = toys.model()
  with pytest.raises(ConfigError, match="3 rows of tokens for a decoding state of 2 rows; begin"):
    extend(config, params, jnp.zeros((3, 1), jnp.int32), config.init_state(2, 8), None)
