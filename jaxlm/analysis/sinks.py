"""Attention sinks and massive activations (arXiv 2410.10781, section 3; 2510.22603).

Axes: L layers, B batch, T time, S keys, N heads, D d_model.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxlm.analysis.activations import sites
from jaxlm.analysis.opened import observe
from jaxlm.analysis.probes import (
  Panel,
  Probe,
  Reading,
  Visible,
  named,
  num_queries,
  stack_name,
  stacked,
  stacks_of,
  visible,
  without_empty,
)
from jaxlm.config import checked
from jaxlm.ranges import Fraction, Positive


def importance(columns_BNS, seen: Visible, T) -> np.ndarray:
  """alpha_k = (1 / n_k) sum_i A_ik over the n_k queries that see key k; float64 (B, N, S).

  For causal rows n_k = T - k, k from 0. columns: the site `attention_columns`. T: queries, of all
  rows or of each.
  """
  columns = np.asarray(columns_BNS, np.float64)
  B, _, S = columns.shape
  counts_BS = np.stack([seen.counts(int(t), S) for t in np.broadcast_to(T, B)])
  return columns / counts_BS[:, None]


def sink_rate(alpha_LBNS, eps: float = 0.3) -> np.ndarray:
  """Share of (layer, row, head) with alpha_k > eps, for each key k: float64 (S,), in [0, 1]."""
  return np.mean(np.asarray(alpha_LBNS) > eps, axis=(0, 1, 2))


def massive(resid_BTD) -> dict[str, float]:
  """max |x|, max |x| / median |x|, and the channel and position of the largest, of one layer. Vectors
  that are zero (H-Net's empty slots) do not count."""
  x = np.abs(np.asarray(resid_BTD, np.float64))
  at = np.unravel_index(int(x.argmax()), x.shape)
  there = x[x.max(axis=-1) > 0]
  middle = float(np.median(there)) if there.size else 0.0
  return {
    "largest": float(x.max()),
    "ratio": float(x.max() / max(middle, 1e-30)),
    "channel": int(at[-1]),
    "position": int(at[-2]),
  }


def well_seen(seen: Visible, T: int, S: int) -> np.ndarray:
  """bool (S,): keys that a quarter of the queries see. The mean weight of the last keys is that of a
  few queries, of which each looks at itself."""
  return (seen.counts(T, S) >= T / 4) & (np.arange(S) < T if seen.causal else True)


def intermediate(alpha_LBNS, seen_S, eps: float = 0.3) -> float:
  """Number of keys behind the first that are a sink of some head of some layer, per row: the mean
  over rows of the count. seen: bool (S,), the keys that count."""
  late = (np.asarray(alpha_LBNS) > eps)[..., 1:] & np.asarray(seen_S)[1:]
  return float(np.mean(np.sum(np.any(late, axis=(0, 2)), axis=-1)))


def cosine_to_first(resid_BTD) -> np.ndarray:
  """cos(h_0, h_t) of t >= 1, float64 (B, T - 1). A zero vector has cosine 0."""
  h = np.asarray(resid_BTD, np.float64)
  h = h / np.sqrt(np.maximum(np.sum(h * h, -1, keepdims=True), 1e-12))
  return np.einsum("btd,bd->bt", h[:, 1:], h[:, 0])


@dataclasses.dataclass(frozen=True)
@checked
class Sinks(Probe):
  """Sink rate of each key position at the threshold eps, the weight of a learned slot, and the
  largest activation of each layer. massive_ratio: max |x| over median |x| that counts as massive.
  """

  sites: ClassVar[tuple[str, ...]] = ("attention_columns", "attention_squares", "attention_slot")
  eps: Fraction = 0.3
  massive_ratio: Positive = 1000.0

  def read(self, opened, batch, texts: Sequence[Sequence[str]] = ()) -> Reading:
    cfg, numbers, tables, panels = opened.config, {}, {}, []
    columns = stacks_of(cfg, "attention_columns", "probe 'sinks'")
    squares = stacks_of(cfg, "attention_squares", "probe 'sinks'")
    slots = stacks_of(cfg, "attention_slot", "probe 'sinks'")
    streams = [n for n, layers in sites(cfg).items() if n.rsplit("/", 1)[-1] == "resid" and layers]
    sums = [full for each in (columns, squares, slots) for full in each.values()]
    found = observe(opened, batch, *sums, *streams)
    of_stack = {}
    for stack, full in columns.items():
      slot_LBNT = stacked(found[slots[stack]])
      T_B = num_queries(stacked(found[squares[stack]]), slot_LBNT)
      of_stack[stack_name(full)] = T_B
      seen = visible(cfg, full, len(found[full]))
      alpha_LBNS = np.stack([importance(x, s, T_B) for x, s in zip(found[full], seen)])
      rate_S = sink_rate(alpha_LBNS, self.eps)
      counted_S = well_seen(seen[0], int(T_B.min()), len(rate_S))
      slot_L = slot_LBNT.sum(axis=(1, 2, 3)) / (slot_LBNT.shape[2] * T_B.sum())  # empty ones are 0
      first_LN = alpha_LBNS[..., 0].mean(axis=1)
      numbers |= {
        named(stack, "sink rate"): float(rate_S[0]),
        named(stack, "weight of the first key"): float(first_LN.mean()),
        named(stack, "weight of the first key, largest head"): float(first_LN.max()),
        named(stack, "strongest key"): int(np.where(counted_S, rate_S, -1).argmax()),
        named(stack, "intermediate sinks"): intermediate(alpha_LBNS, counted_S, self.eps),
        named(stack, "slot"): float(slot_L.mean()),
      }
      tables[named(stack, "sinks by layer")] = [
        {
          "layer": l,
          "sink rate": float(np.mean(alpha_BNS[..., 0] > self.eps)),
          "weight of the first key": float(alpha_BNS[..., 0].mean()),
          "slot": float(slot_L[l]),
        }
        for l, alpha_BNS in enumerate(alpha_LBNS)
      ]
      panels += [
        Panel(
          named(stack, "mean weight of the first key"),
          "head",
          "layer",
          heat=alpha_LBNS[..., 0].mean(axis=1),
        ),
        Panel(
          named(stack, "mean weight of each key"),
          "key position",
          "mean weight",
          lines={f"layer {l}": x.mean(axis=(0, 1)) for l, x in enumerate(alpha_LBNS)},
        ),
      ]
    for full in streams:
      stack = full.rsplit("/", 1)[0] if len(streams) > 1 else ""
      num_B = of_stack.get(stack_name(full))
      of_layer = [massive(without_empty(x, num_B)) for x in found[full]]
      tables[named(stack, "largest activations")] = [
        {"layer": l} | x | {"massive": x["ratio"] > self.massive_ratio}
        for l, x in enumerate(of_layer)
      ]
      numbers[named(stack, "largest activation / median")] = max(x["ratio"] for x in of_layer)
    return Reading(numbers, tables, panels)
