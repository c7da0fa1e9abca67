"""What judges say: likelihood, entropy and length by their definitions, on models whose answers are
known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.tokenizers.bytes import ByteTokenizerConfig
from jaxlm.evaluation.causal_judge import CausalJudge
from jaxlm.evaluation.judge import Scored, change, quality, unigram_entropy
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.positions.additive import Learned
from jaxlm.models.decoder import DecoderConfig


def scored(tokens, log_prob):
  return Scored(np.asarray(tokens), np.asarray(log_prob, float))


def test_entropy_is_of_the_tokens_behind_the_first():
  assert unigram_entropy([9, 1, 1, 2, 2]) == pytest.approx(np.log(2))
  assert unigram_entropy([9, 1, 1]) == 0 and unigram_entropy([9]) == 0


def test_quality_is_a_mean_over_texts_not_tokens_and_says_what_it_left_out():
  found = quality(
    [scored([1, 2, 3, 4], [-1, -1, -1, -1]), scored([1, 2], [-3, np.nan]), scored([], [])]
  )
  assert found.nll == pytest.approx(2.0) and found.length == 3.0
  assert found.empty == pytest.approx(1 / 3) and found.unknown == pytest.approx(1 / 6)


def test_nothing_but_empty_texts_has_no_likelihood():
  assert np.isnan(quality([scored([], [])]).nll) and quality([scored([], [])]).empty == 1.0


def test_change_is_relative_and_text_by_text():
  before = [scored([1, 2, 3], [-2, -2, -2]), scored([1, 2, 3], [-4, -4, -4]), scored([1], [-1])]
  after = [
    scored([1, 2, 3, 4], [-1] * 4),
    scored([1, 2, 3], [-4, -4, -4]),
    scored([1, 2], [-1, -1]),
  ]
  found = change(before, after)
  assert found.nll == pytest.approx(-0.25) and found.length == pytest.approx(1 / 6)
  assert found.left_out == 1  # one token has no entropy to change


CONFIG = DecoderConfig(
  vocab_size=257, d_model=16, num_layers=1, mixer=AttentionConfig(2), position=Learned(40)
)


def test_a_causal_judge_says_what_its_model_says_whatever_else_is_in_the_batch():
  params = CONFIG.build().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  judge = CausalJudge(CONFIG, params, ByteTokenizerConfig().load(), start=256, batch_size=2)
  texts = ["abc", "a much longer text of 35 characters", ""]
  found = judge(texts)
  tokens = np.frombuffer(b"abc", np.uint8).astype(np.int32)
  logits = CONFIG.build().apply({"params": params}, jnp.asarray([[256, *tokens[:-1]]]))
  want = jax.nn.log_softmax(logits[0].astype(jnp.float32))[np.arange(3), tokens]
  np.testing.assert_allclose(found[0].log_prob, want, atol=1e-5)
  assert [len(s.tokens) for s in found] == [3, 35, 0]
  with pytest.raises(ConfigError, match="41 tokens is longer than the judge's 40 positions"):
    judge(["x" * 41])


def test_the_trigram_model_prefers_words_in_order_and_names_those_it_does_not_know():
  pytest.importorskip("pocketsphinx")
  from jaxlm.evaluation.trigram_judge import TrigramJudge

  judge = TrigramJudge()
  ordered, shuffled, unknown = (
    quality(judge([text]))
    for text in (
      "It is one of the best in the world.",
      "world the in best the of one is It",
      "qzxv the",
    )
  )
  assert ordered.nll < shuffled.nll - 1 and ordered.length == 9
  assert unknown.unknown == 0.5
  # p(. | in the) sums to at most one over some words, in nats
  assert (
    sum(
      np.exp(judge.log_prob(["in", "the", w]))
      for w in ("world", "house", "first", "united", "same")
    )
    < 1
  )
