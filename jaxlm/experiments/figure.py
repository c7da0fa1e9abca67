"""One picture per table: a measured curve per row, told apart by colour, dash and a label at the
line's end.
"""

import itertools
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxlm.experiments.table import Table

# Okabe and Ito's palette without yellow, which is too light for a line on white: told apart by
# colour-blind readers. Wine, grey and olive (after Tol's) follow, for tables of more than seven
# rows.
COLOURS = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#56B4E9",
  "#E69F00",
  "#000000",
  "#882255",
  "#999999",
  "#999933",
)
DASHES = ("-", "--", ":", "-.")


def draw(
  table: Table,
  results: Mapping[tuple[str, str, int], dict],
  path,
  *,
  size: str = "",
  scale: str = "",
) -> pathlib.Path | None:
  """PNG of `table.figure`; the mean curve over seeds, with the range of seeds shaded.

  None if nothing has the curve.
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure = table.figure
  rows = [row for row in table.rows if not figure.rows or row.name in figure.rows]
  lines, first = [], None
  for row, style in zip(rows, zip(itertools.cycle(COLOURS), itertools.cycle(DASHES))):
    found = [r for (s, name, _), r in results.items() if (s, name) == (size, row.name)]
    curves = [r["curves"][figure.curve] for r in found if r["curves"].get(figure.curve)]
    if curves:
      first = first or found[0]
      lines.append((row, style, np.array([_running_mean(c, figure.smooth) for c in curves])))
  if not lines:
    return None
  spacing = figure.spacing(first["config"])
  fig, axes = plt.subplots(figsize=(9, 5.2), dpi=110)
  for row, (colour, dash), curves in lines:
    x = (np.arange(curves.shape[1]) + 1) * spacing
    axes.plot(
      x,
      curves.mean(0),
      color=colour,
      linestyle=dash,
      linewidth=1.6,
      label=row.label or row.name,
      marker="o" if figure.ticks else None,
      zorder=2 + DASHES.index(dash) / 10,
    )  # broken lines above whole ones
    if len(curves) > 1:
      axes.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
  black = [
    (label, dash, _running_mean(first["curves"][key], figure.smooth))
    for (key, label), dash in zip(figure.references.items(), itertools.cycle(DASHES[::-1]))
    if first["curves"].get(key)
  ]
  for label, dash, curve in black:
    axes.plot(
      (np.arange(len(curve)) + 1) * spacing,
      curve,
      color="black",
      linestyle=dash,
      linewidth=1.2,
      label=label,
    )
  lines += [(None, None, curve[None]) for *_, curve in black]
  low = min(c.mean(0)[len(c[0]) // 8 :].min() for *_, c in lines)
  high = max(np.quantile(c.mean(0)[len(c[0]) // 8 :], 0.995) for *_, c in lines)
  axes.set_ylim(
    low - 0.05 * (high - low), high + 0.05 * (high - low)
  )  # the first positions know nothing
  for mark, label in (figure.marks(first["config"]) if figure.marks else {}).items():
    axes.axvline(mark, color="0.5", linewidth=1, linestyle=(0, (2, 2)))
    axes.annotate(
      label,
      (mark, 1.0),
      xycoords=("data", "axes fraction"),
      xytext=(4, -10),
      textcoords="offset points",
      fontsize=8,
      color="0.3",
    )
  axes.set(
    title=figure.title + (f" (scale {' '.join(filter(None, (scale, size)))})" if scale else ""),
    xlabel=figure.x_label,
    ylabel=figure.y_label,
    xlim=(spacing, None),
  )
  if figure.ticks:
    axes.set_xlim(0.9, len(figure.ticks) + 0.1)
    axes.set_xticks(range(1, len(figure.ticks) + 1), figure.ticks)
  axes.grid(True, color="0.9", linewidth=0.8)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
  fig.tight_layout()
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  fig.savefig(path)
  plt.close(fig)
  return path


def _running_mean(curve, width: int) -> np.ndarray:
  """Mean over a centred window, shorter at the ends; entries that were not measured are left out."""
  values = np.array([np.nan if v is None else v for v in curve], float)
  known = np.isfinite(values)
  kernel = np.ones(width)
  total = np.convolve(np.where(known, values, 0.0), kernel, "same")
  count = np.convolve(known.astype(float), kernel, "same")
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)
