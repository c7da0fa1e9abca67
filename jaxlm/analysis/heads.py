"""What each attention head does: eight indicators (arXiv 2510.11602, section 4), per layer and head.

Axes: L layers, B batch, T time, N heads, R distances.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxlm.analysis.opened import observe
from jaxlm.analysis.probes import Panel, Probe, Reading, named, num_queries, stacked, stacks_of
from jaxlm.config import checked

STATISTICS = ("entropy", "squares", "first", "near", "spread", "largest", "slot")
INDICATORS = ("entropy", "concentration", "sink", "local 0", "local 1", "local 2", "local 3")


def indicators(entropy, squares, first, near, spread, count_B=None) -> dict[str, np.ndarray]:
  """{indicator: (L, N)}, "diversity": (L,), from arrays of axes (L, B, N, T), near (L, B, N, T, 4),
  spread (L, B, T). count: int (B,), the queries of each row; None: all.

  entropy: mean over queries of -sum a log a, nats. concentration: Frobenius norm of the head's
  matrix, mean over rows. sink: mean over queries of the first key's weight. local r: mean over
  queries of A_i(i-r). diversity: standard deviation over heads, summed over keys, mean over queries.
  """
  T = spread.shape[2]
  valid_BT = np.arange(T) < (T if count_B is None else count_B[:, None])
  valid_BT = np.broadcast_to(valid_BT, spread.shape[1:])

  def mean(x_LBNT):
    return x_LBNT.swapaxes(2, 3)[:, valid_BT].mean(axis=1)

  out = {
    "entropy": mean(entropy),
    "concentration": np.sqrt(squares.sum(axis=3)).mean(axis=1),
    "sink": mean(first),
    "diversity": spread[:, valid_BT].mean(axis=1),
  }
  return out | {f"local {r}": mean(near[..., r]) for r in range(near.shape[-1])}


@dataclasses.dataclass(frozen=True)
@checked
class Heads(Probe):
  """The eight indicators of every head, and their means."""

  sites: ClassVar[tuple[str, ...]] = tuple(f"attention_{name}" for name in STATISTICS)

  def read(self, opened, batch, texts: Sequence[Sequence[str]] = ()) -> Reading:
    numbers, tables, panels = {}, {}, []
    names = {site: stacks_of(opened.config, site, "probe 'heads'") for site in self.sites}
    found = observe(opened, batch, *[full for each in names.values() for full in each.values()])
    for stack in names["attention_entropy"]:
      of = {name: stacked(found[names[f"attention_{name}"][stack]]) for name in STATISTICS}
      count_B = num_queries(of["squares"], of["slot"])
      shown = [of[name] for name in ("entropy", "squares", "first", "near", "spread")]
      read = indicators(*shown, count_B)
      numbers |= {named(stack, name): float(x.mean()) for name, x in read.items()}
      L, N = read["entropy"].shape
      tables[named(stack, "heads")] = [
        {"layer": l, "head": n} | {name: float(read[name][l, n]) for name in INDICATORS}
        for l in range(L)
        for n in range(N)
      ]
      panels += [
        Panel(named(stack, name), "head", "layer", heat=read[name])
        for name in ("entropy", "sink", "local 1")
      ]
    return Reading(numbers, tables, panels)
