"""The panels of a reading as one picture."""

import pathlib

import numpy as np

from jaxlm.analysis.probes import Panel, Reading

# Okabe and Ito's palette, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MOST_LINES = len(COLOURS)
LABEL = 0.16  # inches that a column with a label takes


def draw(reading: Reading, path, title: str = "") -> pathlib.Path | None:
  """A PNG or SVG (by the path's ending) of all panels, below one another. None: there are none."""
  if not reading.panels:
    return None
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  count = len(reading.panels)
  columns = 3 if count == 3 else min(2, count)
  rows = -(-count // columns)
  labels = max(len(panel.x_ticks) for panel in reading.panels)
  size = (
    max(3.4 if columns == 3 else 4.6, 0.5 + LABEL * labels) * columns,
    (1.8 if _one_row(reading.panels) else 3.0) * rows,
  )
  fig, axes = plt.subplots(rows, columns, figsize=size, dpi=90, squeeze=False, layout="constrained")
  for ax, panel in zip(axes.flat, reading.panels):
    _panel(fig, ax, panel)
  for ax in list(axes.flat)[count:]:
    ax.set_axis_off()
  if title:
    fig.suptitle(title, fontsize=9)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  fig.savefig(path)
  plt.close(fig)
  return path


def _one_row(panels) -> bool:
  """Whether all are heat maps of one row, which need little height."""
  return all(p.heat is not None and len(np.atleast_2d(np.asarray(p.heat))) == 1 for p in panels)


def _panel(fig, ax, panel: Panel) -> None:
  ax.set_title(panel.title, fontsize=9)
  ax.set_xlabel(panel.x_label, fontsize=8)
  ax.set_ylabel(panel.y_label, fontsize=8)
  ax.tick_params(labelsize=7)
  if panel.heat is not None:
    heat = np.atleast_2d(np.asarray(panel.heat, float))
    signed = heat.min() < 0
    most = float(np.abs(heat).max()) or 1.0
    image = ax.imshow(
      heat,
      aspect="auto",
      cmap="RdBu_r" if signed else "Blues",
      vmin=-most if signed else 0.0,
      vmax=most,
    )
    if panel.x_ticks:
      ax.set_xticks(range(len(panel.x_ticks)), panel.x_ticks, fontsize=7)
    elif heat.shape[1] <= 12:
      ax.set_xticks(range(heat.shape[1]))
    if heat.shape[0] <= 12:
      ax.set_yticks(range(heat.shape[0]))
    fig.colorbar(image, ax=ax, pad=0.02).ax.tick_params(labelsize=7)
    return
  lines = list(panel.lines.items())
  step = -(-len(lines) // MOST_LINES)
  for (label, y), colour in zip(lines[::step], COLOURS):
    y = np.asarray(y, float)
    ax.plot(np.arange(len(y)) if panel.x is None else panel.x, y, color=colour, label=label, lw=1.4)
  ax.xaxis.get_major_locator().set_params(integer=True)  # layers and positions
  ax.legend(frameon=False, fontsize=7)
  for side in ("top", "right"):
    ax.spines[side].set_visible(False)
