"""The loss by transition between function and content tokens (arXiv 2510.08203).

Function tokens are the most frequent ones that together make 40 % of a corpus. Axes: B batch, T time, V
vocab.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxlm.config import ConfigError

CLASSES = ("f->f", "f->c", "c->f", "c->c")


class Part(NamedTuple):
  """Of one class: mean loss in nats, its share of the summed loss, its share of the tokens, and the
  entropy of the targets' own frequencies in the class, nats: what a model without context could reach.
  """

  loss: float
  share: float
  tokens: float
  unigram: float


def function_tokens(counts_V, share: float = 0.4) -> np.ndarray:
  """bool (V,): the smallest set of the most frequent tokens with at least this share of all."""
  counts = np.asarray(counts_V, np.float64)
  if not counts.sum():
    raise ConfigError("no token was counted; count the training split")
  order = np.argsort(-counts, kind="stable")
  reached = np.cumsum(counts[order]) / counts.sum()
  count = int(np.searchsorted(reached, share - 1e-12) + 1)
  return np.isin(np.arange(len(counts)), order[:count])


def check_tokenizer(tokenizer) -> None:
  """ConfigError for a tokenizer of bytes or characters, whose frequent tokens are letters."""
  kind = type(tokenizer).__name__
  if "Byte" in kind or "Char" in kind:
    raise ConfigError(
      f"function tokens of {kind}: its most frequent tokens are letters, not words; train with "
      "data.tokenizer = 'trained_bpe'"
    )


def classes(tokens_BT, targets_BT, function_V) -> np.ndarray:
  """int (B, T): index into CLASSES of each (current, next)."""
  content = ~np.asarray(function_V, bool)
  return 2 * content[np.asarray(tokens_BT)] + content[np.asarray(targets_BT)]


def by_class(nll_BT, weight_BT, tokens_BT, targets_BT, function_V) -> Mapping[str, Part]:
  """The loss split into CLASSES: sum over classes of tokens * loss is the whole loss."""
  of, w = classes(tokens_BT, targets_BT, function_V), np.asarray(weight_BT, np.float64)
  nll, targets = np.asarray(nll_BT, np.float64), np.asarray(targets_BT)
  whole, out = float((nll * w).sum()), {}
  for i, name in enumerate(CLASSES):
    here = w * (of == i)
    count = here.sum()
    p = np.bincount(targets.ravel(), weights=here.ravel()) / max(count, 1e-12)
    entropy = -float(np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)))
    total = float((nll * here).sum())
    out[name] = Part(
      total / count if count else float("nan"), total / whole, float(count / w.sum()), entropy
    )
  return out


def half_life(steps, losses) -> float:
  """The step at which a loss has fallen half way from its first to its lowest value, by linear
  interpolation; nan if it never falls."""
  steps, x = np.asarray(steps, float), np.asarray(losses, float)
  goal = (x[0] + x.min()) / 2
  below = np.flatnonzero(x <= goal)
  if x.min() >= x[0] or not len(below):
    return float("nan")
  i = int(below[0])
  share = (x[i - 1] - goal) / (x[i - 1] - x[i])
  return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))
