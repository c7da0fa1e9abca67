"""Whether a claim is shown by the seeds that were run.

A claim is evaluated seed by seed, on the rows of one seed at a time, so that rows are compared in
pairs. It gives, per seed, a margin (how far the claim is from failing; positive: it holds) or only
whether it holds.

  margins    shown: the 95 % interval of their mean (Student's t, from 3 seeds on) lies above 0;
             contradicted: it lies below 0
  yes or no  the sign test at the same level, which takes 6 seeds: shown if it holds in each,
             contradicted if it holds in none
  otherwise  not shown; a single seed shows nothing, unless the claim is exact (`Exact`: no seed
             enters it)
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlm.experiments.table import Means, Missing

SEEDS = 3
SIGN_SEEDS = 6  # 2 x 0.5^6 = 0.03: the fewest equal answers that the sign test takes for no chance
CONFIDENCE = 0.95


class Exact(NamedTuple):
  """What a claim returns whose figures have no chance in them, such as counted FLOPs."""

  holds: bool


def verdict(predicate: Callable[[Means], Any], by_seed: Mapping[int, Means], means: Means) -> dict:
  """{"verdict", "seeds", and where there are any "margins", "mean", "interval", "figures"}. means:
  over all seeds.

  verdict: "shown", "not shown", "contradicted", "not comparable" (the claim says why in `figures`),
  "not measured".
  """
  try:
    overall, figures = _split(predicate(means))
  except Missing:
    return {"verdict": "not measured", "seeds": []}
  said = {"figures": figures} if figures else {}
  if overall is None:
    return {"verdict": "not comparable", "seeds": []} | said
  if isinstance(overall, Exact):
    return {
      "verdict": "shown" if overall.holds else "contradicted",
      "seeds": [],
      "exact": True,
    } | said
  found = {}
  for seed, of_seed in sorted(by_seed.items()):
    try:
      found[seed] = _split(predicate(of_seed))[0]
    except Missing:  # a row of the claim was not run with this seed
      continue
  found = {seed: value for seed, value in found.items() if value is not None}
  out = {"seeds": list(found)} | said
  if not found:
    return out | {"verdict": "not shown"}
  if all(isinstance(value, bool) for value in found.values()):
    return out | {
      "verdict": _of_answers(list(found.values())),
      "holds": {str(s): v for s, v in found.items()},
    }
  margins = {seed: float(value) for seed, value in found.items()}
  low, high = interval(list(margins.values()))
  decided = "shown" if low > 0 else "contradicted" if high < 0 else "not shown"
  finite = {} if math.isinf(low) or math.isinf(high) else {"interval": [low, high]}
  return (
    out
    | {
      "verdict": decided,
      "margins": {str(s): m for s, m in margins.items()},
      "mean": statistics.fmean(margins.values()),
    }
    | finite
  )


def interval(values: Sequence[float]) -> tuple[float, float]:
  """The 95 % interval of the mean of paired differences; all numbers below SEEDS values."""
  if len(values) < SEEDS or not all(map(math.isfinite, values)):
    return -math.inf, math.inf
  from scipy.stats import t

  mean, half = (
    statistics.fmean(values),
    float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    * statistics.stdev(values)
    / len(values) ** 0.5,
  )
  return mean - half, mean + half


def ascending(*values: float) -> float:
  """The margin of a < b < ...: the least step from one value to the next."""
  return min(b - a for a, b in zip(values, values[1:]))


def sentence(found: Mapping, digits: int = 3) -> str:
  """What stands behind a claim: the verdict and what decided it."""

  def number(x):
    return f"{x:+.{digits}g}"

  parts = []
  if "interval" in found:
    low, high = found["interval"]
    parts.append(
      f"margin {number(found['mean'])}, 95 % interval {number(low)} to {number(high)}, {len(found['seeds'])} seeds"
    )
  elif "mean" in found:
    parts.append(f"margin {number(found['mean'])}, {_count(found['seeds'])}")
  elif "holds" in found:
    parts.append(f"holds in {sum(found['holds'].values())} of {_count(found['seeds'])}")
  elif found.get("exact"):
    parts.append("exact")
  if found.get("figures"):
    parts.append(found["figures"])
  return f"**{found['verdict']}**" + (f" ({'; '.join(parts)})" if parts else "")


def _count(seeds) -> str:
  return f"{len(seeds)} seed" + ("s" if len(seeds) != 1 else "")


def _split(value) -> tuple[Any, str]:
  if isinstance(value, tuple) and not isinstance(value, Exact):
    value, figures = value
  else:
    figures = ""
  return (
    bool(value) if type(value).__module__ == "numpy" and type(value).__name__ == "bool" else value
  ), figures


def _of_answers(answers: list[bool]) -> str:
  if len(answers) < SIGN_SEEDS:
    return "not shown"
  return "shown" if all(answers) else "not shown" if any(answers) else "contradicted"
