"""Decoding token by token says what the parallel pass says, alone or in a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError, build
from jaxlm.generation import Generator, Sampling
from jaxlm.generation.sampling import filter_logits, sample
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
  params = config.build().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  # Small initial weights give flat logits; a larger scale makes the choices firm.
  return config, jax.tree.map(
    lambda x: 8 * x if x.ndim > 1 else x, jax.tree.map(jnp.asarray, _unboxed(params))
  )


def _unboxed(params):
  import flax.linen as nn

  return nn.unbox(params)


def parallel_greedy(config, params, prompt, steps):
  """The definition: the whole sequence again for every token."""
  tokens = list(prompt)
  for _ in range(steps):
    logits_BTV = config.build().apply({"params": params}, jnp.asarray([tokens], jnp.int32))
    tokens.append(int(jnp.argmax(logits_BTV[0, -1])))
  return tokens[len(prompt) :]


def test_greedy_decoding_equals_the_parallel_pass_for_prompts_of_different_lengths(model):
  config, params = model
  got = Generator(config, params, Sampling(temperature=0)).generate(PROMPTS, 6)
  for prompt, tokens in zip(PROMPTS, got):
    assert tokens.tolist() == parallel_greedy(config, params, prompt, 6)


def test_a_row_draws_the_same_whatever_is_beside_it(model):
  config, params = model
  generator = Generator(config, params, Sampling(temperature=1.0, top_p=0.9))
  together = generator.generate(PROMPTS[:2], 8, seed=7)
  alone = generator.generate(PROMPTS[:1], 8, seed=7)
  assert together[0].tolist() == alone[0].tolist()
  assert together[0].tolist() != generator.generate(PROMPTS[:1], 8, seed=8)[0].tolist()


def test_a_stopped_row_falls_silent_and_the_others_go_on(model):
  config, params = model
  free = Generator(config, params, Sampling(temperature=0)).generate(PROMPTS, 6)
  stop = int(free[0][2])
  stopped = Generator(config, params, Sampling(temperature=0), stop_tokens=(stop,)).generate(
    PROMPTS, 6
  )
  for a, b in zip(free, stopped):
    a = a.tolist()
    assert b.tolist() == (a[: a.index(stop)] if stop in a else a)


def test_top_k_and_top_p_keep_exactly_the_right_tokens():
  logits_BV = jnp.log(jnp.asarray([[0.5, 0.25, 0.15, 0.1]]))

  def kept(s):
    return np.isfinite(np.asarray(filter_logits(logits_BV, s)))[0].tolist()

  assert kept(Sampling(top_k=2)) == [True, True, False, False]
  assert kept(Sampling(top_p=0.5)) == [True, False, False, False]
  assert kept(Sampling(top_p=0.51)) == [True, True, False, False]
  assert kept(Sampling(top_p=1.0)) == [True] * 4
  assert kept(Sampling(top_k=3, top_p=0.7)) == [True, True, False, False]


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
    Generator(*model).generate(prompts, 2)


@pytest.mark.parametrize(
  "fields", [dict(temperature=-1.0), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5)]
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
    Generator(config, {}).generate([[1, 2, 3, 4]], 10)
