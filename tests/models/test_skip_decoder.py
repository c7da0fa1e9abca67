"""SkipDecode: monotone budgets, the plain decoder at speed 1, and caches that hold what is used."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.analysis.activations import record
from jaxlm.config import ConfigError, build
from jaxlm.models.decoder import DecoderConfig
from jaxlm.models.skip_decoder import SkipDecoderConfig, SkipSchedule
from tests.generation.engine import toys

FIELDS = dict(
  vocab_size=12,
  d_model=16,
  num_layers=4,
  mixer=dict(kind="attention", num_heads=2),
  position="rope",
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 12, (2, 10)), jnp.int32)


@pytest.fixture(scope="module")
def plain():
  return toys.model(num_layers=4, scale=4)


def skipping(schedule):
  return dataclasses.replace(build(SkipDecoderConfig, FIELDS), schedule=schedule)


def test_budgets_fall_and_every_layer_that_a_token_uses_was_computed_before():
  schedule = SkipSchedule(min_layers=2, max_layers=6, length=12, start=3, warmup=1)
  positions = jnp.arange(20)[None]
  budget = np.asarray(schedule.budget(positions))[0]
  assert budget[:4].tolist() == [6] * 4 and (np.diff(budget) <= 0).all()
  # max_layers at the first of `length` positions, min_layers at the last.
  steep = SkipSchedule(min_layers=1, max_layers=12, length=12, start=3)
  assert (
    np.asarray(steep.budget(positions))[0].tolist() == [12] * 3 + list(range(12, 0, -1)) + [1] * 5
  )
  runs = np.stack([np.asarray(schedule.runs(l, positions, 8))[0] for l in range(8)])
  assert (runs.sum(0) == budget).all() and runs[0].all() and runs[-1].all()
  assert (runs[:, :-1] >= runs[:, 1:]).all()  # what the next token uses, this one has computed
  random = dataclasses.replace(schedule, keep="random")
  chosen = np.stack([np.asarray(random.runs(l, positions, 8))[0] for l in range(8)])
  assert (chosen.sum(0) == budget).all()


def test_at_speed_1_it_is_the_plain_decoder(plain):
  config, params = plain
  want = toys.whole(params, TOKENS, config)
  for schedule in (None, SkipSchedule(4, 4, 10)):
    np.testing.assert_allclose(toys.whole(params, TOKENS, skipping(schedule)), want, atol=1e-5)
  assert isinstance(skipping(None), DecoderConfig)


def test_a_skipped_layer_changes_nothing_and_streaming_is_the_whole_pass(plain):
  _, params = plain
  schedule = SkipSchedule(min_layers=1, max_layers=3, length=8, warmup=1)
  config = skipping(schedule)
  whole = toys.whole(params, TOKENS, config)
  extend = jax.jit(lambda x, s: config.build().apply({"params": params}, x, s, method="extend"))
  state, out = config.init_state(2, 10), []
  for piece in jnp.split(TOKENS, [4, 5], axis=1):
    logits, state = extend(piece, state)
    out.append(logits)
  np.testing.assert_allclose(jnp.concatenate(out, 1), whole, atol=1e-4)
  # Layer 1 (of 0 .. 3) is run by nobody: its weights do not matter.
  changed = jax.tree.map(lambda x: x.at[1].multiply(2.0), params["blocks"])
  np.testing.assert_array_equal(toys.whole(params | {"blocks": changed}, TOKENS, config), whole)
  assert np.abs(whole - toys.whole(params, TOKENS, skipping(None))).max() > 1e-2
  # The recorded stream is what flows on: behind a layer that nobody runs it is that in front of it.
  stream = record(config, params, {"tokens": TOKENS}, ["resid"])["resid"]
  np.testing.assert_array_equal(stream[1], stream[0])
  assert np.abs(stream[3] - stream[2]).max() > 1e-2


@pytest.mark.parametrize("speed", [1, 2, 3, 4])
def test_a_nominal_speed_is_the_mean_budget(speed):
  schedule = SkipSchedule.of_speed(speed, 12, 400)
  mean = float(jnp.mean(schedule.budget(jnp.arange(400)[None])))
  assert 12 / mean == pytest.approx(speed, rel=0.12)


def test_schedules_that_cannot_be_meant_are_refused():
  with pytest.raises(ConfigError, match="wanted them in this order"):
    SkipSchedule(min_layers=4, max_layers=2, length=8)
  with pytest.raises(ConfigError, match="exceeds num_layers"):
    skipping(SkipSchedule(2, 9, 8))
  with pytest.raises(ConfigError, match="always run"):
    SkipSchedule.of_speed(20, 12, 8)
