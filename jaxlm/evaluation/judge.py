"""What a judge says of texts: their likelihood, and beside it always how varied and how long they
are.

A judge is any function from texts to a `Scored` each; a likelihood alone is no quality, because a
text that repeats itself is likely and an empty one costs nothing. docs/specs/ilm.md, section 7.3.
All in nats.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Scored(NamedTuple):
  """tokens: the judge's own units of one text. log_prob: of each of them, nan where the judge knows
  no such unit.
  """

  tokens: np.ndarray
  log_prob: np.ndarray


Judge = Callable[[Sequence[str]], list[Scored]]


class Quality(NamedTuple):
  """Means over the texts that are not empty: nll per token, entropy, length in tokens.

  empty: fraction of texts without a token. unknown: fraction of tokens that the judge does not
  know, left out of nll.
  """

  nll: float
  entropy: float
  length: float
  empty: float
  unknown: float


def nll(scored: Scored) -> float:
  """Mean of -log p over the tokens that the judge knows; nan without one."""
  known = scored.log_prob[~np.isnan(scored.log_prob)]
  return float(-known.mean()) if len(known) else float("nan")


def unigram_entropy(tokens: np.ndarray) -> float:
  """-sum p log p of the relative frequencies of a text's tokens, the first token left out as in the
  release.
  """
  _, counts = np.unique(np.asarray(tokens)[1:], return_counts=True)
  p = counts / counts.sum() if len(counts) else np.ones(1)
  return float(-(p * np.log(p)).sum())


def quality(texts: Sequence[Scored]) -> Quality:
  some = [t for t in texts if len(t.tokens)]
  if not some:
    return Quality(float("nan"), float("nan"), 0.0, 1.0, float("nan"))
  unknown = np.concatenate([np.isnan(t.log_prob) for t in some])
  known = [x for x in map(nll, some) if np.isfinite(x)]
  return Quality(
    float(np.mean(known)) if known else float("nan"),
    float(np.mean([unigram_entropy(t.tokens) for t in some])),
    float(np.mean([len(t.tokens) for t in some])),
    1 - len(some) / len(texts),
    float(unknown.mean()),
  )


class Change(NamedTuple):
  """Mean over texts of (after - before) / before, of nll, entropy and length. left_out: texts where
  one is 0 or absent.
  """

  nll: float
  entropy: float
  length: float
  left_out: int


def change(before: Sequence[Scored], after: Sequence[Scored]) -> Change:
  """Relative change text by text, as infilling is reported; before and after belong together in
  order.
  """
  rows = []
  for a, b in zip(before, after, strict=True):
    old, new = ([nll(t), unigram_entropy(t.tokens), len(t.tokens)] for t in (a, b))
    if all(np.isfinite(x) and x > 0 for x in old) and np.isfinite(new[0]):
      rows.append([(y - x) / x for x, y in zip(old, new)])
  if not rows:
    return Change(float("nan"), float("nan"), float("nan"), len(before))
  return Change(*map(float, np.mean(rows, axis=0)), len(before) - len(rows))
