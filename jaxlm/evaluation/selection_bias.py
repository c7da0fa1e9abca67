"""Selection bias of roles (arXiv 2509.08146): how much more often a role is chosen as the referent of one
marker than of the other.

Hook for real data: JSON lines {"sentence", "pronoun", "candidates": [a, b], "referent", "group"}, which
users make of WinoBias or BBQ. Axes: R prompts, O roles.
"""

import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlm.data.errors import DataError

FIELDS = ("sentence", "pronoun", "candidates", "referent", "group")


class Choices(NamedTuple):
  """One prompt each: the two roles, which marker (0 or 1), and the log probabilities of both, divided
  by the candidate's number of tokens."""

  first_R: np.ndarray
  second_R: np.ndarray
  marker_R: np.ndarray
  log_first_R: np.ndarray
  log_second_R: np.ndarray


def normalised(log_p, num_tokens):
  """Sum of log probabilities of a candidate over its number of tokens."""
  return np.asarray(log_p, np.float64) / np.asarray(num_tokens)


def selection_bias(c: Choices, num_roles: int, soft: bool = False) -> np.ndarray:
  """O-SB, (O,), in points: 100 (rate chosen with marker 0 - rate with marker 1).

  soft: the normalised probability of being chosen in place of the arg max. Ties choose neither: half.
  DataError: a role that was asked for with one marker only.
  """
  lead = np.asarray(c.log_first_R, np.float64) - np.asarray(c.log_second_R, np.float64)
  chosen = 1 / (1 + np.exp(-lead)) if soft else 0.5 * (1 + np.sign(lead))
  rate = np.zeros((2, num_roles))
  for m in (0, 1):
    total, count = np.zeros(num_roles), np.zeros(num_roles)
    here = np.asarray(c.marker_R) == m
    for role, share in ((c.first_R, chosen), (c.second_R, 1 - chosen)):
      np.add.at(total, np.asarray(role)[here], share[here])
      np.add.at(count, np.asarray(role)[here], 1)
    if (count == 0).any():
      raise DataError(
        f"role {int(np.flatnonzero(count == 0)[0])} is a candidate with one marker only; ask for every role "
        "with both"
      )
    rate[m] = total / count
  return 100 * (rate[0] - rate[1])


def aggregate(bias_O) -> float:
  """A-SB: the mean of |O-SB|."""
  return float(np.abs(bias_O).mean())


def correlation(a_O, b_O) -> float | None:
  """Pearson's rho over roles; None where one of them is constant. DataError: fewer than 3 roles."""
  a, b = np.asarray(a_O, np.float64), np.asarray(b_O, np.float64)
  if len(a) < 3:
    raise DataError(f"a correlation over {len(a)} roles says nothing; give three or more")
  a, b = a - a.mean(), b - b.mean()
  scale = math.sqrt(float(a @ a) * float(b @ b))
  return float(a @ b) / scale if scale > 1e-12 else None


def interval(a_O, b_O, rng: np.random.Generator, draws: int = 1000) -> tuple[float, float]:
  """95 % bootstrap interval of the correlation over roles; draws without a correlation are left out."""
  found = []
  for _ in range(draws):
    at = rng.integers(0, len(a_O), len(a_O))
    value = correlation(np.asarray(a_O)[at], np.asarray(b_O)[at])
    if value is not None:
      found.append(value)
  if not found:
    return float("nan"), float("nan")
  low, high = np.quantile(found, [0.025, 0.975])
  return float(low), float(high)


def expected(p_O, partners) -> np.ndarray:
  """O-SB in points of a chooser that takes o over o' with probability P(m | o) / (P(m | o) + P(m | o')),
  p = P(marker 0 | o), over all `partners` (bool (O, O))."""
  p = np.asarray(p_O, np.float64)

  def rate(p):
    win = p[:, None] / np.maximum(p[:, None] + p[None], 1e-300)
    return (win * partners).sum(1) / np.asarray(partners).sum(1)

  return 100 * (rate(p) - rate(1 - p))


def read_items(path) -> list[dict]:
  """The JSON lines of a user's data set. DataError with the line's number. Blank lines are skipped."""
  items = []
  try:
    text = pathlib.Path(path).read_text()
  except OSError as error:
    raise DataError(f"{path}: {error.strerror}; give a file of JSON lines") from None
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    try:
      item = json.loads(line)
    except ValueError:
      raise DataError(f"{path}, line {number}: no JSON") from None
    if not isinstance(item, dict):
      raise DataError(f"{path}, line {number}: no JSON object; wanted {', '.join(FIELDS)}")
    missing = [name for name in FIELDS if name not in item]
    if missing:
      raise DataError(f"{path}, line {number}: no {missing[0]!r}; wanted {', '.join(FIELDS)}")
    pair, sentence = item["candidates"], str(item["sentence"])
    if not isinstance(pair, list) or len(pair) != 2 or any(str(c) not in sentence for c in pair):
      raise DataError(
        f"{path}, line {number}: candidates {pair}: wanted two that are in the sentence"
      )
    if item["referent"] not in pair:
      raise DataError(
        f"{path}, line {number}: referent {item['referent']!r}: wanted one of the candidates {pair}"
      )
    items.append(item)
  groups = {item["group"] for item in items}
  if len(groups) != 2:
    raise DataError(f"{path}: groups {sorted(map(str, groups))}; wanted two, one of each marker")
  return items
