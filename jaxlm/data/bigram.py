"""Texts of one fixed bigram source, each under a substitution cipher of its own
(docs/specs/lexinvariant.md, sections 1 and 9).

Small enough that the best possible predictor is known: `jaxlm.evaluation.bayes_mixture`. Axes: N
texts, T time, V symbols.
"""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np

from jaxlm.config import check_seed, checked
from jaxlm.data.ciphers import full_cipher
from jaxlm.data.made_rows import MadeRows, row_rng, text_row
from jaxlm.ranges import Count, Positive, Range, Seed


@dataclasses.dataclass(frozen=True)
class Bigram:
  """p(x_0) = initial_V, p(x_t | x_t-1) = transition_VV[x_t-1, x_t]."""

  initial_V: np.ndarray
  transition_VV: np.ndarray

  @classmethod
  def draw(cls, num_symbols: int, concentration: float, rng: np.random.Generator) -> "Bigram":
    """Rows from a symmetric Dirichlet, started at the distribution that they keep."""
    transition_VV = rng.dirichlet(np.full(num_symbols, concentration), num_symbols)
    values, vectors = np.linalg.eig(transition_VV.T)
    initial_V = np.abs(np.real(vectors[:, np.argmin(np.abs(values - 1))]))
    return cls(initial_V / initial_V.sum(), transition_VV)

  def sample(self, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """int32 (count, length)."""
    cumulative = np.cumsum(self.transition_VV, axis=1)
    text = np.empty((count, length), np.int32)
    text[:, 0] = np.searchsorted(np.cumsum(self.initial_V), rng.random(count), side="right")
    for t in range(1, length):
      text[:, t] = (cumulative[text[:, t - 1]] <= rng.random((count, 1))).sum(axis=1)
    return np.minimum(text, len(self.initial_V) - 1)

  def conditionals(self, text_NT) -> np.ndarray:
    """p(. | x_<t), (N, T, V)."""
    first = np.broadcast_to(self.initial_V, (len(text_NT), 1, len(self.initial_V)))
    return np.concatenate([first, self.transition_VV[text_NT[:, :-1]]], axis=1)

  def log_prob(self, text_NT) -> np.ndarray:
    """log p(x_t | x_<t), (N, T)."""
    with np.errstate(divide="ignore"):
      return np.log(
        np.take_along_axis(self.conditionals(text_NT), text_NT[..., None], axis=-1)[..., 0]
      )


@dataclasses.dataclass(frozen=True)
@checked
class BigramData(MadeRows):
  """source_seed draws the source, once and for all; every row is a new text under a new cipher.

  concentration: of the Dirichlet that the transitions come from; small ones make sharp sources.
  rows: of one pass.
  """

  name: ClassVar[str] = "bigram"

  batch_size: Count
  seq_len: Count
  num_symbols: Annotated[int, Range(2)] = 5
  concentration: Positive = 0.3
  source_seed: Seed = 0
  rows: Count = 512

  @property
  def vocab_size(self) -> int:
    return self.num_symbols

  @property
  def source(self) -> Bigram:
    return Bigram.draw(
      self.num_symbols, self.concentration, np.random.default_rng(self.source_seed)
    )

  def row_maker(self):
    source = self.source

    def make(rng):
      return {k: v for k, v in self._draw(source, rng).items() if k not in ("plain", "cipher")}

    return make

  def examples(self, split: str, seed: int) -> dict[str, np.ndarray]:
    """The first pass of a split as whole arrays, with `plain` (N, T + 1), what the texts say, and
    `cipher` (N, V).
    """
    check_seed(seed)
    source = self.source
    drawn = [self._draw(source, row_rng(seed, split, i)) for i in range(self.rows)]
    return {k: np.stack([row[k] for row in drawn]) for k in drawn[0]}

  def _draw(self, source: Bigram, rng) -> dict[str, np.ndarray]:
    plain = source.sample(1, self.seq_len + 1, rng)[0]
    cipher = full_cipher(self.num_symbols, rng)
    return text_row(cipher[plain]) | dict(
      sequence_seeds=rng.integers(0, 2**32, size=2, dtype=np.uint32), plain=plain, cipher=cipher
    )
