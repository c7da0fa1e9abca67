"""From logits to one token: greedy, temperature, top-k, nucleus.

Axes: B batch, V vocab.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.ranges import Count, NonNegative, UpToOne


@dataclasses.dataclass(frozen=True)
@checked
class Sampling:
  """How the next token is drawn. Filters apply in the order temperature, top_k, top_p.

  temperature: logits are divided by it; 0 takes the most probable token.
  top_k: keep the k largest logits (ties with the k-th are kept).
  top_p: keep the smallest set of tokens whose probability reaches top_p (the one that crosses it
  included).
  """

  temperature: NonNegative = 1.0
  top_k: Count | None = None
  top_p: UpToOne | None = None


def filter_logits(logits_BV, sampling: Sampling):
  """Float32 logits with the excluded tokens at -inf. temperature > 0."""
  logits_BV = logits_BV.astype(jnp.float32) / sampling.temperature
  if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
    kth_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
  if sampling.top_p is not None and sampling.top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    p_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = (
      jnp.cumsum(p_BV, axis=-1) - p_BV
    )  # mass in front of each token: kept while it is below top_p
    last_B1 = jnp.min(
      jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True
    )
    logits_BV = jnp.where(logits_BV < last_B1, -jnp.inf, logits_BV)
  return logits_BV


def sample(keys_B, logits_BV, sampling: Sampling):
  """One int32 token per row. keys_B: typed PRNG keys, one per row, so that a row's draw knows
  nothing of the batch.
  """
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(keys_B, filter_logits(logits_BV, sampling)).astype(
    jnp.int32
  )
