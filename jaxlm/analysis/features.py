"""Sparse features of hidden states, and which token types activate them (arXiv 2510.08203).

Axes: N states, D d_model, F features, V vocabulary.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.config import ConfigError, check_seed, checked
from jaxlm.ranges import Count, Positive


class Dictionary(NamedTuple):
  """f = TopK_k(ReLU((h - b) W_e)), reconstruction f W_d + b; rows of W_d have norm 1."""

  w_e_DF: jax.Array
  w_d_FD: jax.Array
  b_D: jax.Array


def encode(d: Dictionary, h_ND, k: int):
  """f (N, F), at most k entries above 0."""
  f_NF = jax.nn.relu((h_ND - d.b_D[None]) @ d.w_e_DF)
  largest_Nk, at_Nk = jax.lax.top_k(
    f_NF, k
  )  # of equal entries the first ones, so never more than k
  return jnp.zeros_like(f_NF).at[jnp.arange(len(f_NF))[:, None], at_Nk].set(largest_Nk)


def decode(d: Dictionary, f_NF):
  return f_NF @ d.w_d_FD + d.b_D[None]


@dataclasses.dataclass(frozen=True)
@checked
class Training:
  """width: F. k: active features. A feature that none of `patience` states activated gets the direction
  of a badly reconstructed state: the first such feature that of the worst one, the next that of the
  second worst, so that no two become the same."""

  width: Count
  k: Count = 16
  steps: Count = 400
  batch: Count = 512
  learning_rate: Positive = 1e-3
  patience: Count = 5000


def train(how: Training, h_ND, seed: int) -> Dictionary:
  """A dictionary of the states. float32."""
  h = jnp.asarray(h_ND, jnp.float32)
  (N, D), F = h.shape, how.width
  if how.k > F:
    raise ConfigError(f"k = {how.k} active features of width = {F}; take fewer")
  key = jax.random.key(check_seed(seed))
  w_FD = jax.random.normal(key, (F, D))
  w_FD = w_FD / jnp.linalg.norm(w_FD, axis=1, keepdims=True)
  d = Dictionary(w_FD.T, w_FD, h.mean(axis=0))
  optimizer = optax.adam(how.learning_rate)

  @jax.jit
  def step(d, state, unused_F, x):
    def loss(d):
      f = encode(d, x, how.k)
      error = jnp.sum(jnp.square(decode(d, f) - x), axis=1)
      return jnp.mean(error), (f, error)

    (_, (f, error)), grads = jax.value_and_grad(loss, has_aux=True)(d)
    updates, state = optimizer.update(grads, state)
    d = optax.apply_updates(d, updates)
    unused_F = jnp.where((f > 0).any(axis=0), 0, unused_F + len(x))
    dead = unused_F > how.patience
    rank_F = jnp.cumsum(dead) - 1  # of each dead feature among them
    dead = dead & (rank_F < len(x))  # one state each; the others wait for the next step
    worst_FD = x[jnp.argsort(-error)][jnp.clip(rank_F, 0, len(x) - 1)] - d.b_D[None]
    worst_FD = worst_FD / jnp.maximum(jnp.linalg.norm(worst_FD, axis=1, keepdims=True), 1e-12)
    w_d = jnp.where(dead[:, None], worst_FD, d.w_d_FD)
    w_e = jnp.where(dead[None], worst_FD.T, d.w_e_DF)
    w_d = w_d / jnp.maximum(jnp.linalg.norm(w_d, axis=1, keepdims=True), 1e-12)
    return Dictionary(w_e, w_d, d.b_D), state, jnp.where(dead, 0, unused_F)

  state, unused = optimizer.init(d), jnp.zeros(F, jnp.int32)
  rng = np.random.default_rng(seed)
  for _ in range(how.steps):
    rows = rng.choice(N, min(how.batch, N), replace=False)
    d, state, unused = step(d, state, unused, h[rows])
  return d


def graph(active_NF, tokens_N, vocab_size: int) -> np.ndarray:
  """bool (V, F): whether a feature is active on any occurrence of a type."""
  out = np.zeros((vocab_size, np.shape(active_NF)[1]), bool)
  np.logical_or.at(out, np.asarray(tokens_N), np.asarray(active_NF, bool))
  return out


def coverage(graph_VF, order_V) -> np.ndarray:
  """Share of the active features that the first n types of the order reach, n = 1 .. V: (V,)."""
  seen = np.logical_or.accumulate(np.asarray(graph_VF, bool)[np.asarray(order_V)], axis=0).sum(
    axis=1
  )
  return seen / max(int(np.asarray(graph_VF).any(axis=0).sum()), 1)


def equal_occurrences(tokens_N, count: int, rng: np.random.Generator) -> np.ndarray:
  """Indices of `count` random occurrences of every type that has as many: degree grows with the number
  of occurrences by sampling alone."""
  order = rng.permutation(len(tokens_N))
  shuffled = np.asarray(tokens_N)[order]
  found = []
  for token in np.unique(shuffled):
    at = np.flatnonzero(shuffled == token)
    if len(at) >= count:
      found.append(order[at[:count]])
  return np.concatenate(found) if found else np.zeros(0, int)
