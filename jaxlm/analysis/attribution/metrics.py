"""How good an attribution is: against known relevant tokens, and by soft deletion of inputs
(arXiv 2402.00794, section 4).

Axes: B batch, T time, D d_model, V vocab.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def precision_at(importance_BT, relevant_BT, count: int) -> np.ndarray:
  """Share of the `count` most important tokens that are relevant, float64 (B,)."""
  order = np.argsort(-np.asarray(importance_BT), axis=1, kind="stable")[:, :count]
  return np.take_along_axis(np.asarray(relevant_BT, float), order, axis=1).mean(axis=1)


def completeness_gap(question, a_BT) -> float:
  """mean |sum_t a_t - (F(e) - F(0))| over mean |F(e) - F(0)|, over rows: 0 where attributions are complete."""
  value, e_BTD = jax.jit(question.value), question.vectors
  change_B = np.asarray(value(question.params, e_BTD), np.float64)
  change_B = change_B - np.asarray(value(question.params, 0 * e_BTD), np.float64)
  gap_B = np.asarray(a_BT, np.float64).sum(axis=1) - change_B
  return float(np.abs(gap_B).mean() / max(np.abs(change_B).mean(), 1e-12))


def distance_as_released(p, p2):
  """sum_v (sqrt p - sqrt p')^2 / sqrt 2: what the release calls Hellinger; at most sqrt 2."""
  return jnp.sum(jnp.square(jnp.sqrt(p) - jnp.sqrt(p2)), axis=-1) / 2**0.5


def hellinger(p, p2):
  """sqrt(sum_v (sqrt p - sqrt p')^2) / sqrt 2, in [0, 1]."""
  return jnp.sqrt(jnp.sum(jnp.square(jnp.sqrt(p) - jnp.sqrt(p2)), axis=-1)) / 2**0.5


class Soft(NamedTuple):
  """normalised_sufficiency, normalised_comprehensiveness, float64 (B,); and what they are made of."""

  normalised_sufficiency: np.ndarray
  normalised_comprehensiveness: np.ndarray
  sufficiency: np.ndarray
  comprehensiveness: np.ndarray
  baseline: np.ndarray


def soft(question, importance_BT, key, *, distance=distance_as_released, draws: int = 4) -> Soft:
  """Each entry of the input vectors of token t is kept with probability q_t.

  sufficiency: 1 - H at q = importance. comprehensiveness: H at q = 1 - importance. baseline: 1 - H
  with all vectors 0. importance: in [0, 1].
  """
  q_BT = jnp.asarray(np.clip(importance_BT, 0.0, 1.0), jnp.float32)

  @jax.jit
  def run(params, e_BTD, key):
    tokens = jnp.asarray(question.tokens_BT)
    whole = jnp.exp(question.log_probs(params, tokens, e_BTD))

    def at(q_BT, key):
      keep = jax.random.bernoulli(key, q_BT[..., None], e_BTD.shape)
      return distance(whole, jnp.exp(question.log_probs(params, tokens, e_BTD * keep)))

    def step(total, key):
      return (total[0] + at(q_BT, key), total[1] + at(1 - q_BT, key)), None

    zero = jnp.zeros(len(q_BT))
    (kept, left), _ = jax.lax.scan(step, (zero, zero), jax.random.split(key, draws))
    return 1 - kept / draws, left / draws, 1 - at(jnp.zeros_like(q_BT), key)

  s, c, base = (np.asarray(x, np.float64) for x in run(question.params, question.vectors, key))
  room = np.maximum(1 - base, 1e-12)
  return Soft(np.maximum(0, s - base) / room, c / room, s, c, base)
