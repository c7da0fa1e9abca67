r"""Where an H-Net cuts: a picture of texts in several scripts, shaded by chunk, and how its
boundaries meet words.

  python experiments/hnet/boundaries.py --run runs/hnet-tiny [another seed's ...] --out boundaries
  [--text "any text" ...]

Writes boundaries.png, boundaries-shifts.png and boundaries.json. In the first, of the first run,
each line is one text, a cell per byte; a line at a cell's left is a boundary, the colour its
probability p. A character that the font lacks is shown by its bytes, and right-to-left scripts in
the order of theirs. The texts are the first words of the Universal Declaration of Human Rights that
come with jaxlm. The second shows, of each run on its own validation text, the share of words with a
boundary so many bytes from their first letter. The numbers: F1 with words of running text in three
conventions (`experiments.hnet.chunks`), and of random words without spaces between them, whose
starts are known, at first letters and at the letters before those, each beside that of random cuts.
"""

import argparse
import json
import pathlib

import numpy as np

from jaxlm import json_text

SCRIPTS = {
  "eng": "English",
  "deu_1996": "German",
  "ell_monotonic": "Greek",
  "rus": "Russian",
  "hin": "Hindi",
  "cmn_hans": "Chinese",
  "jpn": "Japanese",
  "arb": "Arabic",
}
SIGNS = {" ": "␣", "\n": "↵"}


def spaceless(num_words: int, seed: int = 0):
  """(text, start of every word) of common words run together."""
  words = "call me whale the sea ship captain and of white upon water old man boat harpoon night wind deck".split()
  picked = np.random.default_rng(seed).choice(words, num_words)
  starts = np.cumsum([0, *map(len, picked[:-1])])
  return "".join(picked), starts


def open_run(run: str):
  """(configuration, parameters) of a finished run's folder."""
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.training.config import load_config, run_config

  cfg = run_config(load_config(json.loads((pathlib.Path(run) / "config.json").read_text())))
  return cfg, open_model(run, model=cfg.model).params


def route(cfg, params, texts: list[bytes]):
  """[(p, boundary)] of the outermost router on each text, behind the separator that begins a
  document.
  """
  import jax
  import jax.numpy as jnp

  module = cfg.model.build()
  apply = jax.jit(lambda params, t: module.apply({"params": params}, t, method="run").aux[0])
  width = max(map(len, texts)) + 1
  rows = np.zeros((len(texts), width), np.int32)
  for row, text in zip(rows, texts):
    row[: len(text) + 1] = [cfg.data.tokenizer.separator, *text]
  info = jax.device_get(apply(params, jnp.asarray(rows)))
  return [
    (info.p_BT[i, 1 : len(t) + 1], info.boundary_BT[i, 1 : len(t) + 1]) for i, t in enumerate(texts)
  ]


def measure(run: str, texts: list[bytes], num_rows: int = 256):
  """({name: numbers}, routes on the texts) of one run."""
  from experiments.hnet.chunks import alignment, f1, shifts, stages_on_validation

  cfg, params = open_run(run)
  together, starts = spaceless(200)
  *routes, (_, boundary) = route(cfg, params, [*texts, together.encode()])
  first, last = np.zeros((2, len(together)), bool)
  first[starts] = last[starts[1:] - 1] = True
  rate, words = float(boundary[1:].mean()), float(first[1:].mean())  # as many last letters as first
  rows, infos = stages_on_validation(cfg, params, num_rows)
  cuts = infos[0].boundary_BT
  return {
    "run": "/".join(pathlib.Path(run).parts[-2:]),
    "step": json.loads((pathlib.Path(run) / "result.json").read_text())["step"],
    "running text": {
      "rows of validation": len(rows),
      "bytes_per_chunk": float(1 / cuts.mean()),
      **alignment(cuts, rows),
      "rate of boundaries": float(cuts[:, 1:].mean()),
      "share by bytes after the first letter": shifts(cuts, rows),
    },
    "words without spaces": {
      "f1": f1(boundary[1:], first[1:]),
      "f1, last letter of the word before": f1(boundary[1:], last[1:]),
      "bytes_per_chunk": 1 / max(rate, 1e-9),
      "f1 of random cuts at this rate": 2 * rate * words / max(rate + words, 1e-9),
    },
    "bytes per chunk": [len(t) / max(int(b.sum()), 1) for t, (_, b) in zip(texts, routes)],
  }, routes


def bars(found: list[dict], path: str) -> None:
  """Share of words with a boundary at each distance from their first letter; a line at the rate of
  boundaries.
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  fig, ax = plt.subplots(figsize=(7, 3.2), dpi=110)
  width = 0.8 / len(found)
  for i, (run, colour) in enumerate(zip(found, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"))):
    text = run["running text"]
    share = text["share by bytes after the first letter"]
    ax.bar(
      np.array(list(share)) + (i - (len(found) - 1) / 2) * width,
      share.values(),
      width,
      color=colour,
      label=run["run"],
    )
    ax.axhline(text["rate of boundaries"], color=colour, linestyle="--", linewidth=1)
  names = {-1: "-1\nbefore", 0: "0\nfirst"}
  ax.set(
    xticks=list(share),
    xticklabels=[names.get(k, str(k)) for k in share],
    ylabel="share of words with a boundary",
    xlabel="bytes after the word's first letter (dashed: at random)",
  )
  ax.legend(
    frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(found)
  )
  for side in ("top", "right"):
    ax.spines[side].set_visible(False)
  fig.tight_layout()
  fig.savefig(path)


def picture(texts: dict[str, bytes], routes, path: str, run: str, columns: int = 72) -> None:
  """Each named text's first bytes, with what the router of `run` made of them."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt
  from matplotlib.font_manager import findfont, get_font

  font = get_font(findfont("DejaVu Sans"))
  fig, axes = plt.subplots(
    len(texts),
    figsize=(columns * 0.19 + 1.5, 0.5 * len(texts) + 0.9),
    dpi=110,
    squeeze=False,
    layout="constrained",
  )
  for ax, (name, text), (p, boundary) in zip(axes[:, 0], texts.items(), routes):
    n = min(columns, len(text))
    image = ax.imshow(
      np.pad(p[:n], (0, columns - n), constant_values=np.nan)[None],
      aspect="auto",
      cmap="Blues",
      vmin=0,
      vmax=1,
      extent=(0, columns, 0, 1),
    )
    ax.vlines(np.flatnonzero(boundary[:n]), 0, 1, color="#D55E00", linewidth=2.5)
    at = 0
    for character in text.decode("utf-8", "ignore"):
      code = character.encode()
      if at + len(code) > n:
        break
      shown = SIGNS.get(character, character)
      if font.get_char_index(ord(shown)):
        ax.text(at + len(code) / 2, 0.5, shown, ha="center", va="center", fontsize=10)
      else:
        for i, byte in enumerate(code):
          ax.text(at + i + 0.5, 0.5, f"{byte:02x}", ha="center", va="center", fontsize=7)
      at += len(code)
    ax.set(xticks=[], yticks=[], xlim=(0, columns))
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
  fig.colorbar(
    image, ax=list(axes[:, 0]), label="p, probability of a boundary", pad=0.01, aspect=30
  )
  fig.suptitle(
    f"{run}: where the outermost router cuts. A cell: one byte; orange: a boundary, before the byte to its right\n"
    "␣ blank, ↵ line break; two digits: a byte, in hexadecimal, of a character that the font lacks",
    fontsize=9,
  )
  fig.savefig(path)


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--run", required=True, nargs="+", help="folders of finished runs; the picture is of the first"
  )
  parser.add_argument("--out", default="boundaries", help="stem of the .png and .json")
  parser.add_argument("--text", action="append", help="instead of the built-in texts; repeat it")
  args = parser.parse_args()

  from jaxlm.data.sources import open_corpus
  from jaxlm.experiments.runner import provenance

  if args.text:
    texts = {f"text {i}": text.encode() for i, text in enumerate(args.text, 1)}
  else:

    def first(code):
      return next(iter(open_corpus(f"mini:udhr/{code}").documents("train")))

    opening = {name: first(code) for code, name in SCRIPTS.items()}
    texts = {name: (t if isinstance(t, bytes) else t.encode())[:96] for name, t in opening.items()}
  measured = [measure(run, list(texts.values())) for run in args.run]
  found = [numbers for numbers, _ in measured]
  picture(texts, measured[0][1], f"{args.out}.png", found[0]["run"])
  bars(found, f"{args.out}-shifts.png")
  pathlib.Path(f"{args.out}.json").write_text(
    json_text.dumps({"runs": found, "texts": args.text or list(SCRIPTS), **provenance()}, indent=1)
    + "\n"
  )
  print(json_text.dumps(found, indent=1))
  print(f"written: {args.out}.png, {args.out}-shifts.png, {args.out}.json")
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
