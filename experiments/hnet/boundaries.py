r"""Where an H-Net cuts: a picture of texts in several scripts, shaded by chunk, and F1 against word starts.

  python experiments/hnet/boundaries.py --run runs/hnet-tiny --out boundaries.png [--text "any text" ...]

Each line is one text, a cell per byte; a darker edge is a boundary, the colour its probability p. The texts are the
first words of the Universal Declaration of Human Rights that come with jaxlm, and random words without spaces
between them, whose starts are known.
"""

import argparse
import json
import pathlib

import numpy as np

SCRIPTS = ("eng", "deu_1996", "ell_monotonic", "rus", "hin", "cmn_hans", "jpn", "arb")


def spaceless(num_words: int, seed: int = 0):
  """(text, start of every word) of common words run together."""
  words = "call me whale the sea ship captain and of white upon water old man boat harpoon night wind deck".split()
  picked = np.random.default_rng(seed).choice(words, num_words)
  starts = np.cumsum([0, *map(len, picked[:-1])])
  return "".join(picked), starts


def route(run: str, texts: list[bytes]):
  """[(p, boundary)] of the outermost router on each text, behind the separator that begins a document."""
  import jax
  import jax.numpy as jnp

  from jaxlm.generation.command import load
  from jaxlm.training.config import load_config, run_config
  cfg = run_config(load_config(json.loads((pathlib.Path(run) / "config.json").read_text())))
  params, _ = load(cfg, run)
  module = cfg.model.build()
  apply = jax.jit(lambda t: module.apply({"params": params}, t, method="with_stages")[1][0])
  width = max(map(len, texts)) + 1
  rows = np.zeros((len(texts), width), np.int32)
  for row, text in zip(rows, texts):
    row[:len(text) + 1] = [cfg.data.tokenizer.separator, *text]
  info = jax.device_get(apply(jnp.asarray(rows)))
  return [(info.p_BT[i, 1:len(t) + 1], info.boundary_BT[i, 1:len(t) + 1]) for i, t in enumerate(texts)]


def picture(texts: list[bytes], routes, path: str, columns: int = 96) -> None:
  import matplotlib
  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  fig, axes = plt.subplots(len(texts), figsize=(columns * 0.17, 0.55 * len(texts)), dpi=110, squeeze=False)
  for ax, text, (p, boundary) in zip(axes[:, 0], texts, routes):
    n = min(columns, len(text))
    ax.imshow(np.pad(p[:n], (0, columns - n), constant_values=np.nan)[None], aspect="auto", cmap="Blues", vmin=0, vmax=1,
              extent=(0, columns, 0, 1))
    for t in np.flatnonzero(boundary[:n]):
      ax.axvline(t, color="#D55E00", linewidth=2)
    at = 0
    for character in text.decode("utf-8", "ignore"):
      size = len(character.encode())
      if at + size > n:
        break
      ax.text(at + size / 2, 0.5, character, ha="center", va="center", fontsize=8)
      at += size
    ax.set(xticks=[], yticks=[])
  fig.tight_layout(pad=0.3)
  fig.savefig(path)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--run", required=True, help="a finished run's folder")
  parser.add_argument("--out", default="boundaries.png")
  parser.add_argument("--text", action="append", help="instead of the built-in texts; repeat it")
  args = parser.parse_args()

  from jaxlm.data.sources import open_corpus
  from jaxlm.experiments.chunks import f1
  if args.text:
    texts = [text.encode() for text in args.text]
  else:
    first = lambda code: next(iter(open_corpus(f"mini:udhr/{code}").documents("train")))
    texts = [(t if isinstance(t, bytes) else t.encode())[:96] for t in map(first, SCRIPTS)]
  run_together, starts = spaceless(200)
  *routes, (_, boundary) = route(args.run, [*texts, run_together.encode()])
  picture(texts, routes, args.out)
  wanted = np.zeros(len(run_together), bool)
  wanted[starts] = True
  rate, words = boundary[1:].mean(), wanted[1:].mean()
  print(f"written: {args.out}")
  print(f"words without spaces: F1 {f1(boundary[1:], wanted[1:]):.3f}, of random cuts at the same rate "
        f"{2 * rate * words / max(rate + words, 1e-9):.3f}; {1 / max(rate, 1e-9):.1f} bytes per chunk")
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
