"""Scores of whole generated sequences: exact match, token accuracy, sets of facts.

Axes: B batch, T position. Plain numpy on the host. docs/specs/ilm.md, section 7.
"""

import numpy as np


def remove_tokens(ids_BT, removed, pad: int) -> np.ndarray:
  """Rows without the `removed` ids, moved to the left; `pad` behind them."""
  ids_BT, out_BT = np.asarray(ids_BT), np.full_like(ids_BT, pad)
  for out_T, row_T in zip(out_BT, ids_BT):
    kept = row_T[~np.isin(row_T, list(removed))]
    out_T[: len(kept)] = kept
  return out_BT


def exact_match(found_BT, wanted_BT, length_B=None) -> float:
  """Fraction of rows that are the wanted ones in every place; length_B: of the found rows, must be
  the whole width.
  """
  right_B = np.all(np.asarray(found_BT) == np.asarray(wanted_BT), axis=1)
  if length_B is not None:
    right_B = right_B & (np.asarray(length_B) == np.asarray(wanted_BT).shape[1])
  return float(np.mean(right_B))


def token_accuracy(found_BT, wanted_BT, counted_BT) -> float:
  """Mean over rows of the fraction of counted places that are right (Hamming)."""
  counted_BT = np.asarray(counted_BT, bool)
  right_B = np.sum((np.asarray(found_BT) == np.asarray(wanted_BT)) & counted_BT, axis=1)
  return float(np.mean(right_B / np.maximum(np.sum(counted_BT, axis=1), 1)))


def triples(tokens, bos: int) -> list[tuple[int, int, int]]:
  """Consecutive threes behind BOS; what is left over makes none."""
  tokens = [int(t) for t in tokens]
  answer = tokens[tokens.index(bos) + 1 :] if bos in tokens else []
  return [tuple(answer[i : i + 3]) for i in range(0, len(answer) - 2, 3)]


def set_scores(found, wanted) -> tuple[float, float]:
  """(mean intersection over union, fraction of equal sets) of pairs of collections of facts,
  whatever their order.
  """
  ious = []
  for a, b in zip(found, wanted):
    a, b = {tuple(x) for x in a}, {tuple(x) for x in b}
    ious.append(len(a & b) / len(a | b) if a | b else 1.0)
  return float(np.mean(ious)), float(np.mean([iou == 1.0 for iou in ious]))
