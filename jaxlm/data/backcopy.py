"""The Bigram-Backcopy task (arXiv 2410.13835, section 3): a character bigram in which a few triggers
repeat the token before them.

  <s>, x_1 ~ pi without triggers; then x_{t+1} = x_{t-1} if x_t is a trigger, else x_{t+1} ~ P(. | x_t)

Axes: T time, V symbols.
"""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.errors import DataError
from jaxlm.data.made_rows import MadeRows, text_row
from jaxlm.data.sources import open_corpus
from jaxlm.ranges import Count, Fraction


@dataclasses.dataclass(frozen=True)
class Backcopy:
  """start_V: pi without triggers. transition_VV: P, rows of triggers included. trigger_V: bool.
  copy: probability that a trigger repeats; otherwise the bigram goes on.
  """

  start_V: np.ndarray
  transition_VV: np.ndarray
  trigger_V: np.ndarray
  copy: float = 1.0

  def sample(self, length: int, rng: np.random.Generator) -> np.ndarray:
    """int32 (length,) symbols x_1 .. x_length, without <s>."""
    cumulative = np.cumsum(self.transition_VV, axis=1)
    x, chance = np.empty(length, np.int32), rng.random((length, 2))
    x[0] = np.searchsorted(np.cumsum(self.start_V), chance[0, 0], side="right")
    for t in range(1, length):
      last = x[t - 1]
      if self.trigger_V[last] and chance[t, 1] < self.copy:
        x[t] = x[t - 2]
      else:
        x[t] = np.searchsorted(cumulative[last], chance[t, 0], side="right")
    return np.minimum(x, len(self.start_V) - 1)

  def conditional(self, before, last) -> np.ndarray:
    """p(. | x_{t-1} = before, x_t = last), (..., V): the Bayes predictor."""
    p = self.transition_VV[last]
    copied = np.eye(len(self.start_V))[before]
    mix = self.copy * self.trigger_V[last][..., None]
    return (1 - mix) * p + mix * copied

  def entropies(self) -> np.ndarray:
    """(V, V): entropy in nats of the next symbol after (before, last)."""
    V = len(self.start_V)
    before, last = np.meshgrid(np.arange(V), np.arange(V), indexing="ij")
    p = self.conditional(before, last)
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)

  def pair_law(self, length: int) -> np.ndarray:
    """(length - 1, V, V): probability of (x_{t-1}, x_t), t = 2 .. length; exact."""
    V = len(self.start_V)
    before, last = np.meshgrid(np.arange(V), np.arange(V), indexing="ij")
    following = self.conditional(before, last)  # (before, last, next)
    # x_1 is no trigger, so x_2 is of the bigram.
    law = [self.start_V[:, None] * self.transition_VV]
    for _ in range(length - 2):
      law.append(np.einsum("ab,abc->bc", law[-1], following))
    return np.stack(law)

  def bayes_loss(self, length: int) -> dict[str, float]:
    """Least loss of predicting x_3 .. x_{length + 1} from what comes before, nats per symbol, in
    closed form: "all", "trigger" and "other" by the current symbol, and "share" of triggers.
    """
    weight_VV = self.pair_law(length).sum(0)
    cost_VV = weight_VV * self.entropies()
    on = self.trigger_V[None, :] & np.ones_like(weight_VV, bool)
    share = weight_VV[on].sum() / weight_VV.sum()
    return {
      "all": float(cost_VV.sum() / weight_VV.sum()),
      "trigger": float(cost_VV[on].sum() / weight_VV[on].sum()),
      "other": float(cost_VV[~on].sum() / weight_VV[~on].sum()),
      "share": float(share),
    }


@functools.lru_cache(maxsize=8)
def of_text(source: str, num_symbols: int, num_triggers: int, floor: float, copy: float):
  """(Backcopy, the characters): tables of a corpus's commonest lower-case characters."""
  text = ""
  for document in open_corpus(source).documents("train"):
    text += (document if isinstance(document, str) else document.decode("utf-8", "replace")).lower()
  found, counts = np.unique(list(text), return_counts=True)
  if len(found) < num_symbols:
    raise DataError(
      f"{source} has {len(found)} different characters, fewer than num_symbols = {num_symbols}; "
      "take fewer symbols"
    )
  characters = "".join(found[np.argsort(-counts, kind="stable")[:num_symbols]])
  index = {c: i for i, c in enumerate(characters)}
  ids = np.array([index[c] for c in text if c in index])
  pairs = np.zeros((num_symbols, num_symbols))
  np.add.at(pairs, (ids[:-1], ids[1:]), 1.0)
  transition = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
  transition = (1 - floor) * transition + floor / num_symbols
  trigger = np.arange(num_symbols) < num_triggers  # in order of frequency
  start = np.bincount(ids, minlength=num_symbols) * ~trigger
  return Backcopy(
    start / start.sum(), transition / transition.sum(1, keepdims=True), trigger, copy
  ), characters


@dataclasses.dataclass(frozen=True)
@checked
class BackcopyData(MadeRows):
  """Rows <s>, x_1, x_2, ...; <s> is the last id. The tables are of the text of `source`.

  num_symbols: the commonest characters. num_triggers: the commonest of them. floor: share of the
  uniform distribution in every row of P. copy: probability that a trigger repeats. rows: of one pass
  of validation. Targets from x_3 on count: what x_1 and x_2 are nobody can copy.
  """

  name: ClassVar[str] = "backcopy"

  batch_size: Count
  seq_len: Count = 64
  source: str = "mini:en"
  num_symbols: Count = 30
  num_triggers: Count = 3
  floor: Fraction = 0.01
  copy: Fraction = 1.0
  rows: Count = 256

  def __post_init__(self):
    if self.num_triggers >= self.num_symbols:
      raise ConfigError(
        f"data.num_triggers = {self.num_triggers} of num_symbols = {self.num_symbols}: one symbol at "
        "least must be no trigger"
      )
    if self.seq_len < 3:
      raise ConfigError(f"data.seq_len = {self.seq_len}: the first target that counts is the third")

  @property
  def vocab_size(self) -> int:
    return self.num_symbols + 1

  @property
  def start(self) -> int:
    """The id of <s>."""
    return self.num_symbols

  @property
  def task(self) -> Backcopy:
    return of_text(self.source, self.num_symbols, self.num_triggers, self.floor, self.copy)[0]

  @property
  def characters(self) -> str:
    return of_text(self.source, self.num_symbols, self.num_triggers, self.floor, self.copy)[1]

  def row_maker(self):
    task = self.task

    def make(rng):
      row = text_row(np.concatenate([[self.start], task.sample(self.seq_len, rng)]))
      row["loss_weights"][:2] = 0.0
      return row

    return make
