"""MrT5: one sentence in several scripts, the bytes that a trained gate deletes in grey.  A figure,
not a table.

  python experiments/mrt5/figure_deleted.py --run runs/mrt5-span-corruption/smoke/mrt5_50/seed0
  --out experiments/mrt5/results/deleted.png

The sentence is from article 26 of the Universal Declaration of Human Rights, which lies in the
validation split. Above: the characters, darker the more of their bytes stay; below: a cell per
byte, dark if it goes on behind the gate. A language whose characters no font of this machine draws
is left out and named. Chinese: a CJK font, for instance Debian's fonts-wqy-microhei (--font FILE
adds one that is not installed).
"""

import argparse
import pathlib
import unicodedata

import numpy as np

LANGUAGES = {
  "eng": "English",
  "fra": "French",
  "rus": "Russian",
  "ell_monotonic": "Greek",
  "arb": "Arabic",
  "cmn_hans": "Chinese",
  "tha": "Thai",
  "hin": "Hindi",
}
ENDS = {"hin": "।", "arb": ".", "cmn_hans": ",", "tha": " "}
KEPT, DELETED = "#1b1b1b", "#c9ccd1"


def sentence(code: str) -> str:
  """The first sentence of article 26."""
  from jaxlm.data.mini import mini

  text = mini(f"udhr/{code}")[1]["validation"][0].decode().split("\n\n")[1]
  end = text.find(ENDS.get(code, "."))
  return text[: end + 1].strip()


def clusters(text: str) -> list[str]:
  """Characters with the marks that stand on them."""
  out: list[str] = []
  for character in text:
    if out and unicodedata.category(character).startswith("M"):
      out[-1] += character
    else:
      out.append(character)
  return out


def kept_bytes(programs, text: str, length: int) -> np.ndarray:
  """Bool per byte of the text."""
  from jaxlm.data import byte_t5

  ids = byte_t5.encode(text)
  front = programs.front(byte_t5.pad([ids], max(length, len(ids))))
  return np.asarray(front.gate_BL)[0, : len(ids) - 1] > programs.threshold


def drawable(text: str, fonts) -> bool:
  from matplotlib.ft2font import FT2Font

  maps = [set(FT2Font(path).get_charmap()) for path in fonts]
  return all(any(ord(c) in m for m in maps) for c in text if not c.isspace())


def draw(rows, fonts, title: str, out: pathlib.Path) -> None:
  """rows: (language, text, kept per byte)."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt
  from matplotlib import font_manager
  from matplotlib.colors import LinearSegmentedColormap
  from matplotlib.patches import Rectangle

  families = []
  for path in fonts:
    font_manager.fontManager.addfont(path)
    families.append(font_manager.FontProperties(fname=path).get_name())
  plt.rcParams["font.family"] = list(dict.fromkeys(families))
  shade = LinearSegmentedColormap.from_list("kept", [DELETED, KEPT])
  width = max(len(text.encode()) for _, text, _ in rows)
  fig, axes = plt.subplots(figsize=(12, 0.78 * len(rows) + 0.6), dpi=130)
  for i, (language, text, kept) in enumerate(rows):
    y, at = -i, 0
    rightwards = unicodedata.bidirectional(text[0]) not in ("R", "AL")
    size = len(text.encode())
    axes.text(
      -1.5,
      y,
      f"{language}\n{100 * (1 - kept.mean()):.0f} % deleted",
      ha="right",
      va="center",
      fontsize=8.5,
      color="0.25",
    )
    for cluster in clusters(text):
      n = len(cluster.encode())
      left = at if rightwards else size - at - n
      axes.text(
        left + n / 2,
        y + 0.12,
        cluster,
        ha="center",
        va="center",
        fontsize=11,
        color=shade(kept[at : at + n].mean()),
      )
      for k in range(n):
        cell = left + (k if rightwards else n - 1 - k)
        axes.add_patch(
          Rectangle(
            (cell + 0.08, y - 0.33),
            0.84,
            0.14,
            linewidth=0,
            color=KEPT if kept[at + k] else DELETED,
          )
        )
      at += n
  axes.set(xlim=(-14, width + 1), ylim=(-len(rows) + 0.45, 0.6), title=title)
  axes.title.set_fontsize(10)
  axes.axis("off")
  fig.tight_layout()
  out.parent.mkdir(parents=True, exist_ok=True)
  fig.savefig(out)
  plt.close(fig)


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--run", required=True, help="run folder of a model with a delete gate over ByT5's bytes"
  )
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("experiments/mrt5/results/deleted.png")
  )
  parser.add_argument("--font", action="append", default=[])
  args = parser.parse_args()

  from matplotlib import font_manager

  from jaxlm.checkpoint.opening import open_model
  from jaxlm.generation.hard_deletion import TwoPrograms
  from jaxlm.training.config import run_config

  opened = open_model(args.run)
  cfg, params, step = run_config(opened.run), opened.params, opened.step
  programs = TwoPrograms(cfg.model.build(), params)
  installed = [
    f.fname
    for f in font_manager.fontManager.ttflist
    if f.name.startswith("Noto Sans") or "CJK" in f.name
  ]
  fonts = [font_manager.findfont("DejaVu Sans"), *args.font, *sorted(installed)]
  rows = []
  for code, language in LANGUAGES.items():
    text = sentence(code)
    if not drawable(text, fonts):
      print(f"{language}: no font here draws it, left out")
      continue
    kept = kept_bytes(programs, text, cfg.data.seq_len)
    rows.append((language, text, kept))
    print(
      f"{language}: {len(text)} characters, {len(kept)} bytes, {100 * (1 - kept.mean()):.1f} % deleted"
    )
  model = opened.run["model"]
  draw(
    rows,
    fonts,
    f"Bytes that a delete gate keeps (dark) and deletes (grey): d_model {model['d_model']}, gate at block "
    f"{model['reduction']['layer']}, {step:,} steps of span corruption",
    args.out,
  )
  print(f"written: {args.out}")
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
