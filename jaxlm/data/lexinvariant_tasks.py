"""In-context reasoning with symbols that mean nothing: LookUp and Permutation
(docs/specs/lexinvariant.md, section 8).

Prompts are token ids; answers follow the prompt directly. Axes: B batch of instances, K pairs, E examples, N
string length.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.ranges import Count


class Prompts(NamedTuple):
  """int32 prompt (B, L) and answer (B, N)."""

  prompt: np.ndarray
  answer: np.ndarray


def lookup_prompts(keys_BK, values_BK, query_B, *, arrow: int, separator: int) -> Prompts:
  """`k1 > v1 ; .. kK > vK ; kq >`, answer vq; query: q."""
  rows = np.arange(len(keys_BK))

  def marks(token):
    return np.full_like(keys_BK, token)

  pairs = np.stack([keys_BK, marks(arrow), values_BK, marks(separator)], axis=-1).reshape(
    len(keys_BK), -1
  )
  prompt = np.concatenate([pairs, keys_BK[rows, query_B][:, None], marks(arrow)[:, :1]], axis=1)
  return Prompts(prompt.astype(np.int32), values_BK[rows, query_B][:, None].astype(np.int32))


def permutation_prompts(strings_BEN, sigma_BN, *, arrow: int, separator: int) -> Prompts:
  """`a1..aN > a_sigma(1)..a_sigma(N) ;` for all strings but the last, whose image is the answer."""
  B, E, N = strings_BEN.shape
  images = np.take_along_axis(
    strings_BEN, np.broadcast_to(sigma_BN[:, None], strings_BEN.shape), axis=2
  )

  def marks(token):
    return np.full((B, E, 1), token)

  solved = np.concatenate([strings_BEN, marks(arrow), images, marks(separator)], axis=2)[
    :, :-1
  ].reshape(B, -1)
  prompt = np.concatenate([solved, strings_BEN[:, -1], marks(arrow)[:, 0]], axis=1)
  return Prompts(prompt.astype(np.int32), images[:, -1].astype(np.int32))


@dataclasses.dataclass(frozen=True)
@checked
class LookUp:
  """num_pairs distinct keys with distinct values, none of them a key; chance is 1 / num_pairs."""

  num_pairs: Count = 4

  def draw(
    self, symbols: np.ndarray, count: int, rng: np.random.Generator, *, arrow: int, separator: int
  ) -> Prompts:
    K = self.num_pairs
    chosen = _distinct(symbols, 2 * K, count, rng, f"LookUp with num_pairs = {K}")
    return lookup_prompts(
      chosen[:, :K], chosen[:, K:], rng.integers(K, size=count), arrow=arrow, separator=separator
    )


@dataclasses.dataclass(frozen=True)
@checked
class Permutation:
  """num_examples strings of `length` fresh symbols, the last unsolved, under one permutation;
  chance is 1 / length!.
  """

  length: Count = 4
  num_examples: Count = 5

  def draw(
    self, symbols: np.ndarray, count: int, rng: np.random.Generator, *, arrow: int, separator: int
  ) -> Prompts:
    N, E = self.length, self.num_examples
    strings = _distinct(symbols, N, count * E, rng, f"Permutation with length = {N}").reshape(
      count, E, N
    )
    sigma = rng.permuted(np.broadcast_to(np.arange(N), (count, N)), axis=1)
    return permutation_prompts(strings, sigma, arrow=arrow, separator=separator)


#: Of the spec: 500 instances each.
SETTINGS = (
  *(LookUp(k) for k in (2, 4, 8)),
  *(Permutation(n, e) for n in (3, 4, 5) for e in (3, 5)),
)


def _distinct(symbols, number: int, rows: int, rng, what: str) -> np.ndarray:
  """(rows, number) symbols, distinct in each row."""
  if number > len(symbols):
    raise ConfigError(f"{what} needs {number} distinct symbols, the vocabulary has {len(symbols)}")
  order = np.argsort(rng.random((rows, len(symbols))), axis=1)[:, :number]
  return np.asarray(symbols)[order]


def accuracy(predicted_BN, answer_BN) -> dict[str, float]:
  """exact_match (whole answers) and token_accuracy, as fractions."""
  right = np.asarray(predicted_BN) == np.asarray(answer_BN)
  return {"exact_match": float(right.all(axis=1).mean()), "token_accuracy": float(right.mean())}
