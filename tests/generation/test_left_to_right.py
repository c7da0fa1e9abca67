"""Decoding token by token says what the parallel pass says, alone or in a batch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError, build
from jaxlm.generation import Sampling
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import GREEDY, sample
from jaxlm.models.base import init
from jaxlm.models.decoder import DecoderConfig

PROMPTS = [
  [3, 1, 4, 1, 5, 9, 2, 6],
  [2, 7],
  list(range(1, 20)) * 4,
]  # the last is longer than one prefill piece


@pytest.fixture(scope="module")
def model():
  config = build(
    DecoderConfig,
    dict(
      vocab_size=40,
      d_model=32,
      num_layers=2,
      position="carope",
      mixer=dict(kind="attention", num_heads=2, window=16),
    ),
  )
  params = nn.unbox(jax.jit(lambda: init(config, jax.random.key(0)))())
  # Small initial weights give flat logits; a larger scale makes the choices firm.
  return config, jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)


def parallel_greedy(config, params, prompt, steps):
  """The definition: the whole sequence again for every token; nothing sees the zeros behind it."""
  tokens = list(prompt)
  for _ in range(steps):
    padded_BT = np.asarray([tokens + [0] * (96 - len(tokens))], np.int32)
    tokens.append(int(jnp.argmax(_whole(params, padded_BT, config)[0, len(tokens) - 1])))
  return tokens[len(prompt) :]


@functools.partial(jax.jit, static_argnums=2)
def _whole(params, tokens_BT, config):
  return config.build().apply({"params": params}, tokens_BT)


def test_greedy_decoding_equals_the_parallel_pass_for_prompts_of_different_lengths(model):
  config, params = model
  got = LeftToRight(config, GREEDY).generate(params, PROMPTS, 6).answers
  for prompt, tokens in zip(PROMPTS, got):
    assert tokens.tolist() == parallel_greedy(config, params, prompt, 6)


def test_a_row_draws_the_same_whatever_is_beside_it(model):
  config, params = model
  engine = LeftToRight(config, Sampling(temperature=1.0, top_p=0.9))
  together = engine.generate(params, PROMPTS[:2], 8, seed=7).answers
  alone = engine.generate(params, PROMPTS[:1], 8, seed=7).answers
  assert together[0].tolist() == alone[0].tolist()
  assert together[0].tolist() != engine.generate(params, PROMPTS[:1], 8, seed=8).answers[0].tolist()


def test_tokens_do_not_depend_on_how_many_a_dispatch_draws(model):
  config, params = model
  sampling = Sampling(temperature=0.9)
  one, five = (
    LeftToRight(config, sampling, stops=(33,), tokens_per_dispatch=n).generate(params, PROMPTS, 12)
    for n in (1, 5)
  )
  assert [a.tolist() for a in one.answers] == [a.tolist() for a in five.answers]
  assert one.passes == five.passes and {len(a) for a in one.answers} != {12}  # some stop early
  engine = LeftToRight(config, sampling, stops=(33,), tokens_per_dispatch=5)
  shots = list(engine.watch(params, PROMPTS[0], 12))
  assert shots[-1].final and list(shots[-1].sequence) == one.sequences[0].tolist()
  assert [s.newest for s in shots[:-1]] == list(range(len(PROMPTS[0]), len(one.sequences[0])))


def test_a_stopped_row_falls_silent_and_the_others_go_on(model):
  config, params = model
  free = LeftToRight(config, GREEDY).generate(params, PROMPTS, 6).answers
  stop = int(free[0][2])
  stopped = LeftToRight(config, GREEDY, stops=(stop,)).generate(params, PROMPTS, 6).answers
  for a, b in zip(free, stopped):
    a = a.tolist()
    assert b.tolist() == (a[: a.index(stop)] if stop in a else a)


def test_samples_follow_the_softmax_at_any_temperature():
  logits_V = jnp.asarray([1.0, 0.0, -1.0, 2.0])
  keys = jax.random.split(jax.random.key(0), 40_000)
  drawn = sample(keys, jnp.broadcast_to(logits_V, (40_000, 4)), Sampling(temperature=0.7))
  share = np.bincount(np.asarray(drawn), minlength=4) / 40_000
  want = np.asarray(jax.nn.softmax(logits_V / 0.7))
  # Five standard errors of a multinomial share.
  assert np.all(np.abs(share - want) < 5 * np.sqrt(want * (1 - want) / 40_000))


@pytest.mark.parametrize(
  "prompts, message", [([[]], "empty"), ([], "no prompt"), ([[1, 99]], "token 99")]
)
def test_prompts_that_cannot_be_meant_are_refused(model, prompts, message):
  with pytest.raises(ConfigError, match=message):
    LeftToRight(model[0]).generate(model[1], prompts, 2)


@pytest.mark.parametrize(
  "fields",
  [dict(temperature=-1.0), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5), dict(min_p=1.5)],
)
def test_impossible_sampling_is_refused(fields):
  with pytest.raises(ConfigError):
    Sampling(**fields)


def test_a_position_table_that_is_too_short_is_named_before_anything_runs():
  config = build(
    DecoderConfig,
    dict(
      vocab_size=10,
      d_model=8,
      num_layers=1,
      position=dict(kind="learned", max_len=12),
      mixer=dict(kind="attention", num_heads=1),
    ),
  )
  with pytest.raises(ConfigError, match="position table has 12"):
    LeftToRight(config).generate({}, [[1, 2, 3, 4]], 10)
