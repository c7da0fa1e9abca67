"""Logit processors keep what those of Hugging Face keep, row by row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError, build
from jaxlm.generation.processors import MinP, Processor, Temperature, TopK, TopP, process
from jaxlm.generation.sampling import Sampling, sample

LOGITS_BV = np.random.default_rng(0).normal(size=(16, 50)).astype(np.float32) * 3
FOUR = jnp.log(jnp.asarray([[0.5, 0.25, 0.15, 0.1]]))


@pytest.mark.parametrize(
  ("fields", "kept"),
  [
    (dict(top_k=2), 2),
    (dict(top_p=0.5), 1),
    (dict(top_p=0.51), 2),
    (dict(top_p=1.0), 4),
    (dict(top_k=3, top_p=0.7), 2),
    (dict(min_p=0.31), 2),
    (dict(min_p=0.29), 3),
    (dict(min_p=0.29, temperature=0.5), 1),  # 0.25 after the temperature is (1/2)^2 of the best
  ],
)
def test_filters_keep_exactly_the_most_probable_tokens_that_they_name(fields, kept):
  got = np.isfinite(np.asarray(process(FOUR, Sampling(**fields).chain)))[0]
  assert got.tolist() == [True] * kept + [False] * (4 - kept)


def test_they_keep_what_the_processors_of_hugging_face_keep():
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  from transformers.generation import logits_process as hf

  pairs = [
    ([Temperature(0.7)], [hf.TemperatureLogitsWarper(0.7)]),
    ([TopK(5)], [hf.TopKLogitsWarper(5)]),
    ([TopP(0.8)], [hf.TopPLogitsWarper(0.8)]),
    ([TopP(0.01)], [hf.TopPLogitsWarper(0.01)]),
    ([MinP(0.05)], [hf.MinPLogitsWarper(0.05)]),
    # Their order in transformers' generate.
    (
      Sampling(0.7, 20, 0.9, 0.02).chain,
      [
        hf.TemperatureLogitsWarper(0.7),
        hf.TopKLogitsWarper(20),
        hf.TopPLogitsWarper(0.9),
        hf.MinPLogitsWarper(0.02),
      ],
    ),
  ]
  for ours, theirs in pairs:
    want_BV = torch.tensor(LOGITS_BV)
    for processor in theirs:
      want_BV = processor(None, want_BV)
    got_BV = np.asarray(process(jnp.asarray(LOGITS_BV), ours))
    np.testing.assert_array_equal(np.isfinite(got_BV), np.isfinite(want_BV.numpy()), str(ours))
    np.testing.assert_allclose(got_BV, want_BV.numpy(), rtol=1e-6)


def test_a_row_is_processed_as_if_it_were_alone():
  chain = Sampling(0.7, 20, 0.9, 0.02).chain
  together = process(jnp.asarray(LOGITS_BV), chain)
  for b in range(0, 16, 5):
    alone = process(jnp.asarray(LOGITS_BV[b : b + 1]), chain)
    np.testing.assert_array_equal(alone[0], together[b])


def test_processors_are_named_in_a_mapping_and_come_in_front_of_the_filters():
  chosen = build(Sampling, dict(top_k=2, processors=[dict(kind="min_p", p=0.1)]))
  assert chosen.chain == (MinP(0.1), TopK(2)) and hash(chosen)
  with pytest.raises(ConfigError, match="did you mean 'min_p'"):
    build(Sampling, dict(processors=[dict(kind="min_q", p=0.1)]))


@dataclasses.dataclass(frozen=True)
class NotBefore(Processor):
  """Excludes a token while a row has drawn fewer than n."""

  token: int
  n: int

  def __call__(self, logits_BV, num_new_B):
    closed_BV = (jnp.arange(logits_BV.shape[1]) == self.token)[None] & (num_new_B < self.n)[:, None]
    return jnp.where(closed_BV, -jnp.inf, logits_BV)


def test_a_processor_of_one_s_own_sees_how_far_each_row_is_also_when_greedy():
  sampling = Sampling(temperature=0, processors=(NotBefore(0, 3),))
  drawn = sample(
    jax.random.split(jax.random.key(0), 2), jnp.tile(FOUR, (2, 1)), sampling, jnp.asarray([2, 3])
  )
  assert drawn.tolist() == [1, 0]
