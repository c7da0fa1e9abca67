"""The triangular schedule by hand, and what it leaves as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError, build
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.generation.base import Options
from jaxlm.generation.engine.beam import Beam
from jaxlm.generation.engine.blocks import Blocks
from jaxlm.generation.engine.cyclic_reflex import Add, Cyclic, RandomPhase, ids_of_words, triangle
from jaxlm.generation.engine.speculative import Speculative
from jaxlm.generation.insertion_engines import insertion_sampling
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.masked_diffusion import MaskedDiffusionEngine
from jaxlm.generation.processors import met_by, none_met, process
from jaxlm.generation.sampling import GREEDY, Sampling, sample
from jaxlm.models.masked_diffusion import MaskedDiffusionConfig
from tests.generation.engine import toys

LOGITS_BV = jnp.asarray(np.random.default_rng(0).normal(size=(9, 6)), jnp.float32)


def test_the_wave_by_hand():
  steps = jnp.arange(9)
  assert triangle(steps, 4, 8).tolist() == [0, 2, 4, 2, 0, -2, -4, -2, 0]
  np.testing.assert_allclose(triangle(steps, 4, 8, 0.5), -np.asarray(triangle(steps, 4, 8)))
  assert float(jnp.sum(triangle(jnp.arange(100), 3, 100))) == pytest.approx(0, abs=1e-4)
  ends = triangle(jnp.asarray([24.999, 25.0, 25.001, 74.999, 75.0, 75.001]), 1, 100)
  np.testing.assert_allclose(ends, [1, 1, 1, -1, -1, -1], atol=1e-3)


def test_only_listed_ids_change_and_amplitude_0_changes_no_bit():
  after = process(LOGITS_BV, [Cyclic((2, 4), 4.0, 8.0)], jnp.arange(9))
  others = [0, 1, 3, 5]
  np.testing.assert_array_equal(after[:, others], LOGITS_BV[:, others])
  np.testing.assert_allclose((after - LOGITS_BV)[:, 2], [0, 2, 4, 2, 0, -2, -4, -2, 0], atol=1e-5)
  keys = jax.random.split(jax.random.key(0), 9)
  plain = sample(keys, LOGITS_BV, Sampling(), jnp.arange(9))
  for idle in (Cyclic((2,), 0.0), Cyclic(())):
    np.testing.assert_array_equal(process(LOGITS_BV, [idle], jnp.arange(9)), LOGITS_BV)
    np.testing.assert_array_equal(
      sample(keys, LOGITS_BV, Sampling(processors=(idle,)), jnp.arange(9)), plain
    )
  np.testing.assert_allclose(process(LOGITS_BV, [Add((1,), -3.0)])[:, 1], LOGITS_BV[:, 1] - 3)


def test_a_random_phase_has_the_offsets_of_the_wave_in_another_order():
  zeros = jnp.zeros((800, 6))
  added = np.asarray(process(zeros, [RandomPhase((2,), 4.0, 8.0)], jnp.arange(800)))[:, 2]
  # The wave has 0 and +-2 twice in a period and +-4 once; 5 standard deviations of 800 draws.
  values, counts = np.unique(added, return_counts=True)
  assert values.tolist() == [-4, -2, 0, 2, 4]
  np.testing.assert_allclose(counts, [100, 200, 200, 200, 100], atol=61)
  assert (added[:-1] != added[1:]).any() and (added[8:] != added[:-8]).any()
  same = process(zeros[:3], [RandomPhase((2,), 4.0, 8.0)], jnp.full(3, 7))[:, 2]
  assert np.unique(same).tolist() == [added[7]]  # of the number of the token alone
  with pytest.raises(ConfigError, match="RandomPhase goes by the number of tokens"):
    insertion_sampling(Options(processors=(RandomPhase((2,)),)))


def test_a_row_is_left_alone_once_it_has_drawn_the_end_of_its_thinking():
  chain = (Cyclic((0,), 4.0, 8.0, until=5), Add((1,), 1.0))
  met = none_met(chain, 2)
  met = met_by(chain, jnp.asarray([5, 3]), jnp.asarray([True, True]), met)
  assert met.tolist() == [[True, False], [False, False]]
  met = met_by(
    chain, jnp.asarray([0, 5]), jnp.asarray([True, False]), met
  )  # the second row is done
  assert met.tolist() == [[True, False], [False, False]]
  after = process(LOGITS_BV[:2], chain, jnp.asarray([2, 2]), met)
  np.testing.assert_allclose((after - LOGITS_BV[:2])[:, 0], [0, 4], atol=1e-5)
  np.testing.assert_allclose((after - LOGITS_BV[:2])[:, 1], [1, 1], atol=1e-5)


def test_one_program_serves_every_step():
  traces = []

  @jax.jit
  def run(step_B):
    traces.append(1)
    return process(LOGITS_BV, [Cyclic((2,))], step_B)

  for step in range(4):
    run(jnp.full(9, step))
  assert len(traces) == 1


def test_engines_without_an_order_of_tokens_refuse_the_wave_and_drafted_ones_keep_its_phase():
  config, target = toys.model()
  _, draft = toys.model(seed=1)
  wave = Sampling(0, processors=(Cyclic((2, 7), 20.0, 4.0),))
  plain, with_wave = (
    LeftToRight(config, s).generate(target, [[3, 1], [2]], 9).answers for s in (GREEDY, wave)
  )
  assert [a.tolist() for a in plain] != [a.tolist() for a in with_wave]
  found = Speculative(config, config, wave, num_draft=2).generate(
    {"target": target, "draft": draft}, [[3, 1], [2]], 9
  )
  assert [a.tolist() for a in found.answers] == [a.tolist() for a in with_wave]
  diffusion = build(
    MaskedDiffusionConfig, dict(vocab_size=9, d_model=16, num_layers=1, num_heads=2, d_cond=8)
  )
  with pytest.raises(ConfigError, match="Cyclic goes by the number of tokens .* block diffusion"):
    Blocks(diffusion, 8, Sampling(processors=(Cyclic((2,)),)))
  with pytest.raises(ConfigError, match="masked diffusion writes tokens in no such order"):
    MaskedDiffusionEngine(
      diffusion,
      SpecialTokens(pad=6, eos=7, mask=8),
      unmasking=Sampling(processors=(Cyclic((2,)),)),
    )
  with pytest.raises(ConfigError, match="insertion writes tokens in no such order"):
    insertion_sampling(Options(processors=(Cyclic((2,)),)))
  with pytest.raises(ConfigError, match="`until` .* beam search does not tell it"):
    Beam(config, processors=(Add((1,), 1.0, until=3),))


class Words:
  """`wait` is one token, ` wait` is two."""

  def encode(self, text):
    return [7] if text == "wait" else [1, 7]

  def decode(self, ids):
    return {7: "wait", 1: " "}[ids[0]]


def test_a_word_of_several_tokens_is_refused_with_its_pieces():
  assert ids_of_words(["wait"], Words()) == (7,)
  with pytest.raises(ConfigError, match="' wait' is not one token .* ' ', 'wait'"):
    ids_of_words([" wait"], Words())
  with pytest.raises(ConfigError, match="period"):
    build(Sampling, dict(processors=[dict(kind="cyclic", ids=[1], period=0)]))
