"""Tiny models with firm choices, and the target alone, by which engines are judged."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import build
from jaxlm.models.base import init
from jaxlm.models.decoder import DecoderConfig


def model(vocab_size=12, d_model=16, num_layers=1, seed=0, scale=8, **fields):
  """(config, params). scale: of the weights, so that the distributions differ from flat ones."""
  mixer = fields.pop("mixer", dict(kind="attention", num_heads=2))
  fields = dict(position="rope") | fields
  config = build(
    DecoderConfig,
    dict(vocab_size=vocab_size, d_model=d_model, num_layers=num_layers, mixer=mixer) | fields,
  )
  params = nn.unbox(jax.jit(lambda: init(config, jax.random.key(seed)))())
  return config, jax.tree.map(lambda x: scale * x if x.ndim > 1 else x, params)


def mixed(params, other, share=0.5):
  """Weights between two trees of one shape: a draft that often agrees with its target."""
  return jax.tree.map(lambda a, b: (1 - share) * a + share * b, params, other)


@functools.partial(jax.jit, static_argnums=2)
def whole(params, tokens_BT, config):
  return config.build().apply({"params": params}, tokens_BT)


def distribution(config, params, prompt, length) -> dict[tuple, float]:
  """{continuation: probability} of all sequences of `length` tokens, by enumeration."""
  V = config.vocab_size
  every = np.stack(np.meshgrid(*[np.arange(V)] * length, indexing="ij"), -1).reshape(-1, length)
  rows = np.concatenate([np.tile(np.asarray(prompt), (len(every), 1)), every], axis=1)
  log_p = np.asarray(jax.nn.log_softmax(whole(params, jnp.asarray(rows, jnp.int32), config)))
  at = np.arange(len(prompt) - 1, len(prompt) + length - 1)
  total = np.take_along_axis(log_p[:, at], every[..., None], axis=2)[..., 0].sum(1)
  return {tuple(map(int, row)): float(np.exp(value)) for row, value in zip(every, total)}


def chi_square(answers, wanted: dict[tuple, float], floor: float = 5.0) -> float:
  """The p value of the draws under the wanted distribution; rare outcomes are pooled."""
  from scipy.stats import chi2

  counts = {}
  for answer in answers:
    counts[tuple(map(int, answer))] = counts.get(tuple(map(int, answer)), 0) + 1
  n = len(answers)
  seen, expected, pooled = [], [], [0.0, 0.0]
  for key, p in wanted.items():
    if n * p >= floor:
      seen.append(counts.get(key, 0))
      expected.append(n * p)
    else:
      pooled[0] += counts.get(key, 0)
      pooled[1] += n * p
  assert not set(counts) - set(wanted), "an outcome of probability 0"
  if pooled[1] > 0:
    seen.append(pooled[0])
    expected.append(pooled[1])
  statistic = float(np.sum((np.asarray(seen) - expected) ** 2 / np.asarray(expected)))
  return float(chi2.sf(statistic, len(seen) - 1))
