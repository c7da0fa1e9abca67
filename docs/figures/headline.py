"""The picture of README.md: loss by position of RoPE and CARoPE, from the result of table 1.

  python docs/figures/headline.py

Reads experiments/carope/results/smoke.json and writes docs/figures/headline.svg. The picture names
the digest of the numbers that it shows; a test compares it.
"""

import hashlib
import json
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = ROOT / "experiments" / "carope" / "results" / "smoke.json"
PICTURE = ROOT / "docs" / "figures" / "headline.svg"
COLUMNS = {"train length": 1, "2x": 2, "4x": 4}
ROWS = {  # label, colour, shift of the label in points
  "rope": ("RoPE", "#D55E00", 0),
  "yarn": ("RoPE + YaRN", "#888888", 5),
  "carope": ("CARoPE", "#0072B2", -4),
}


def numbers() -> dict:
  """{row: {column: {"mean", "spread"}}} of the rows that are drawn, and the training length."""
  saved = json.loads(SOURCE.read_text())
  rows = {row["row"]: row["cells"] for row in saved["rows"] if row["row"] in ROWS}
  kept = ("mean", "spread", "num_seeds")
  return {
    row: {column: {name: cells[column][name] for name in kept} for column in COLUMNS}
    for row, cells in rows.items()
  }


def digest() -> str:
  return hashlib.sha256(json.dumps(numbers(), sort_keys=True).encode()).hexdigest()


def draw(path: pathlib.Path = PICTURE) -> None:
  import matplotlib

  matplotlib.use("Agg")
  matplotlib.rcParams["svg.hashsalt"] = "jaxlm"
  matplotlib.rcParams["font.size"] = 10
  import matplotlib.pyplot as plt

  fig, axes = plt.subplots(figsize=(7.2, 2.7))
  for row, cells in numbers().items():
    label, colour, shift = ROWS[row]
    x = [64 * times for times in COLUMNS.values()]
    mean = [cells[column]["mean"] for column in COLUMNS]
    spread = [cells[column]["spread"] for column in COLUMNS]
    axes.errorbar(x, mean, spread, color=colour, marker="o", capsize=3, lw=2)
    axes.annotate(
      label, (x[-1], mean[-1]), (8, shift), textcoords="offset points", color=colour, va="center"
    )
  axes.axvline(64, color="#555555", ls=":", lw=1)
  axes.set_xscale("log", base=2)
  axes.set_xticks([64, 128, 256], ["64 (trained)", "128", "256"])
  axes.set_xlim(56, 340)
  axes.minorticks_off()
  axes.set_xlabel("length of the evaluated window, bytes")
  axes.set_ylabel("perplexity per byte")
  axes.spines[["top", "right"]].set_visible(False)
  axes.set_title(
    "Beyond the training length (mean ± standard deviation of three seeds)", fontsize=10, loc="left"
  )
  fig.tight_layout()
  fig.savefig(path, metadata={"Date": None, "Description": digest()}, facecolor="white")


if __name__ == "__main__":
  draw()
