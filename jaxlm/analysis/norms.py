"""Norms of the residual stream and of the values, at the first token and elsewhere
(arXiv 2410.13835: residual-state peaks and value-state drains).

Axes: L layers, B batch, T time, K kv heads, H head_dim, D d_model.
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
  named,
  num_queries,
  stack_name,
  stacked,
  stacks_of,
  without_empty,
)
from jaxlm.config import checked


def at_first_and_elsewhere(x, axes: tuple[int, ...] = (-1,)) -> tuple[float, float]:
  """(mean norm at position 0, mean norm at the others) of (B, T, ...); norm over `axes`.

  Vectors that are zero (H-Net's empty slots) do not count. A row of one token has nothing elsewhere:
  nan.
  """
  norm = np.sqrt(np.sum(np.square(np.asarray(x, np.float64)), axis=axes))
  rest = norm[:, 1:][norm[:, 1:] > 0]
  return float(norm[:, 0].mean()), float(rest.mean()) if rest.size else float("nan")


@dataclasses.dataclass(frozen=True)
@checked
class Norms(Probe):
  """Norm of the stream behind each layer, and of each layer's values where it has some."""

  sites: ClassVar[tuple[str, ...]] = ("resid",)

  def read(self, opened, batch, texts: Sequence[Sequence[str]] = ()) -> Reading:
    cfg, numbers, tables, panels = opened.config, {}, {}, []
    streams = stacks_of(cfg, "resid", "probe 'norms'")
    values = [n for n, layers in sites(cfg).items() if n.rsplit("/", 1)[-1] == "v" and layers]
    # Only H-Net, which has boundaries, has slots that may be empty; its attention tells which.
    slots = any(n.rsplit("/", 1)[-1] == "boundary" for n in sites(cfg))
    squares, slot = (
      {
        stack_name(n): n
        for n, layers in sites(cfg).items()
        if n.endswith(site) and layers and slots
      }
      for site in ("attention_squares", "attention_slot")
    )
    read = (*streams.values(), *values, *squares.values(), *slot.values())
    found = observe(opened, batch, *read)
    count = {
      stack: num_queries(stacked(found[full]), stacked(found[slot[stack]]))
      for stack, full in squares.items()
    }

    def of_layers(full):
      num_B = count.get(stack_name(full))
      return [at_first_and_elsewhere(without_empty(x, num_B)) for x in found[full]]

    for stack, full in streams.items():
      pairs = of_layers(full)
      peak = max(range(len(pairs)), key=lambda l: pairs[l][0] / pairs[l][1])
      numbers |= {
        named(stack, "residual peak, first / others"): pairs[peak][0] / pairs[peak][1],
        named(stack, "layer of the peak"): peak,
      }
      tables[named(stack, "residual norms")] = [
        {"layer": l, "first": a, "others": b} for l, (a, b) in enumerate(pairs)
      ]
      panels.append(
        Panel(
          named(stack, "norm of the residual stream"),
          "layer",
          "mean norm",
          lines={"first token": [a for a, _ in pairs], "other tokens": [b for _, b in pairs]},
        )
      )
    for full in values:
      pairs = of_layers(full)
      name = full.rsplit("/", 1)[0] if len(values) > 1 else ""
      numbers[named(name, "value norm, first / others")] = min(a / b for a, b in pairs)
      tables[named(name, "value norms")] = [
        {"layer": l, "first": a, "others": b} for l, (a, b) in enumerate(pairs)
      ]
    return Reading(numbers, tables, panels)
