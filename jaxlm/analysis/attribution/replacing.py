"""Attribution by what happens to the prediction when tokens are replaced: no gradient is needed.

Axes: B batch, T time, V vocab, C chains.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.attribution.base import Method
from jaxlm.config import ConfigError, checked
from jaxlm.ranges import Count, Inside

EDGE = 1e-6  # (delta + 1) / 2 is clipped to [EDGE, 1 - EDGE], so that |delta| = 1 is finite


def unigram(weights_V) -> Callable:
  """A replacement sampler: (key, tokens_BT) -> other tokens, drawn by weight, never the same one."""
  log_w_V = jnp.log(jnp.asarray(weights_V, jnp.float32))

  def sample(key, tokens_BT):
    same_BTV = jax.nn.one_hot(tokens_BT, len(log_w_V), dtype=bool)
    return jax.random.categorical(key, jnp.where(same_BTV, -jnp.inf, log_w_V[None, None]), axis=-1)

  return sample


class Chains(NamedTuple):
  """importance_BT: softmax of the scores, the mean over the chains that stopped. stopped_B: how many
  did; where none did, the mean is over all."""

  importance_BT: np.ndarray
  stopped_B: np.ndarray
  passes: int


def step_of_scores(s, replaced, drop):
  """The scores after one replacement: drop = p(v | y) - p(v | y'), in [-1, 1], per row.

  s += logit((d + 1) / 2) with d = drop where a token was replaced, -drop elsewhere.
  """
  delta = jnp.where(replaced, drop[..., None], -drop[..., None])
  p = jnp.clip((delta + 1) / 2, EDGE, 1 - EDGE)
  return s + jnp.log(p) - jnp.log1p(-p)


@dataclasses.dataclass(frozen=True)
@checked
class ReAGent(Method):
  """Recursive replace-and-rescore (arXiv 2402.00794), as its release does it.

  Scores begin as uniform numbers. A step replaces each token with probability `rate` by a draw of
  the sampler, and adds logit((d + 1) / 2), d = p(v | y) - p(v | y'), to the replaced ones' scores,
  and the same of -d to the others'. A chain stops when the target is among the `top_k` most
  probable with all but the `keep` highest scores replaced, at the latest after `steps`.
  sampler: None: uniform over the vocabulary.
  """

  signed: ClassVar[bool] = False
  rate: Inside = 0.3
  steps: Count = 300
  chains: Count = 5
  top_k: Count = 3
  keep: Count = 3
  stop: bool = True
  sampler: Any = None

  def __call__(self, question, key) -> np.ndarray:
    return self.run(question, key).importance_BT

  def run(self, question, key) -> Chains:
    B, T = np.shape(question.tokens_BT)
    if T < 2:
      raise ConfigError(
        "a context of one token has nothing to compare its importance with; give two tokens or more"
      )
    V, C, keep = question.config.vocab_size, self.chains, min(self.keep, T)
    sample = self.sampler or unigram(jnp.ones(V))
    tokens = jnp.repeat(jnp.asarray(question.tokens_BT), C, axis=0)  # (B C, T)
    target = jnp.repeat(jnp.asarray(question.targets_B), C)[:, None]

    def log_p_of(params, tokens):
      return question.log_probs(params, tokens)

    def target_p(log_p):
      return jnp.exp(jnp.take_along_axis(log_p, target, axis=1)[:, 0])

    @jax.jit
    def walk(params, key):
      start, key = jax.random.split(key)
      s = jax.random.uniform(start, tokens.shape)
      p = target_p(log_p_of(params, tokens))

      def step(state, key):
        s, done = state
        k1, k2, k3 = jax.random.split(key, 3)
        replaced = jax.random.bernoulli(k1, self.rate, tokens.shape)
        other = jnp.where(replaced, sample(k2, tokens), tokens)
        drop = p - target_p(log_p_of(params, other))
        new = step_of_scores(s, replaced, drop)
        s = jnp.where(done[:, None], s, new)
        if self.stop:
          kept = s >= jax.lax.top_k(s, keep)[0][:, -1:]
          log_p = log_p_of(params, jnp.where(kept, tokens, sample(k3, tokens)))
          rank = jnp.sum(log_p > jnp.take_along_axis(log_p, target, axis=1), axis=1)
          done = done | (rank < self.top_k)
        return (s, done), jnp.sum(~done)

      start = (s, jnp.zeros(tokens.shape[0], bool))
      (s, done), left = jax.lax.scan(step, start, jax.random.split(key, self.steps))
      return s, done, left

    s, done, left = walk(question.params, key)
    weight = np.asarray(jax.nn.softmax(s, axis=-1), np.float64).reshape(B, C, T)
    stopped = np.asarray(done).reshape(B, C)
    counted = np.where(stopped.any(1, keepdims=True), stopped, True)
    mean = (weight * counted[..., None]).sum(1) / counted.sum(1)[:, None]
    passes = int(np.asarray(left).sum()) * (2 if self.stop else 1) + B * C
    return Chains(mean, stopped.sum(1), passes)


def expected_lead(rate: float, drop: float) -> float:
  """By how much the score of the one token that matters leads any other's per step, on average, if
  replacing it lowers p(v) by `drop`: 2 r (1 - r) logit((drop + 1) / 2)."""
  return 2 * rate * (1 - rate) * (math.log(1 + drop) - math.log(1 - drop))


@dataclasses.dataclass(frozen=True)
@checked
class LeaveOneOut(Method):
  """F(tokens) minus its mean over `draws` replacements of one token."""

  draws: Count = 4
  sampler: Any = None

  def __call__(self, question, key) -> np.ndarray:
    B, T = np.shape(question.tokens_BT)
    sample = self.sampler or unigram(jnp.ones(question.config.vocab_size))
    tokens = jnp.asarray(question.tokens_BT)

    @jax.jit
    def run(params, key):
      def of(tokens_BT):
        return question.picked(question.log_probs(params, tokens_BT))

      def step(total, now):
        t, key = now
        other = jnp.where(jnp.arange(T)[None] == t, sample(key, tokens), tokens)
        return total.at[:, t].add(of(other)), None

      at = jnp.tile(jnp.arange(T), self.draws)
      total, _ = jax.lax.scan(step, jnp.zeros((B, T)), (at, jax.random.split(key, T * self.draws)))
      return of(tokens)[:, None] - total / self.draws

    return np.asarray(run(question.params, key))
