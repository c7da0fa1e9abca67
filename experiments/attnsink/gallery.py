r"""The pictures of docs/probes.md: every probe of one run of `sinks.py`.

  python experiments/attnsink/gallery.py --run runs/attnsink/smoke/softmax/seed0 \
    --out experiments/attnsink/results/gallery

Writes OUT.json, the readings with the revision and the run's step, and OUT-<probe>.png. Refused from
files that differ from the revision.
"""

import argparse
import pathlib

import numpy as np

from jaxlm import json_text

TEXT = "Mr. Darcy danced only once with Mrs. Hurst and once with Mi"  # where the run reads text
ROWS, LENGTH = 16, 64


def readings(run: str):
  """({probe: Reading}, the opened run, the row of the probe "attribution" as people read it)."""
  from jaxlm.analysis.command import batch_of, visible
  from jaxlm.analysis.probes import probe
  from jaxlm.checkpoint.opening import open_model

  opened = open_model(run)
  batch, texts = batch_of(opened, [], ROWS, LENGTH)
  found = {kind: probe(kind).read(opened, batch, texts) for kind in ("sinks", "heads", "norms")}
  if (
    opened.tokenizer is None
  ):  # Bigram-Backcopy: a row of the run, its first id last in the vocabulary
    batch, _ = batch_of(opened, [], 1, LENGTH)
    symbols = (*opened.data.characters, "<s>")
    texts = [[visible(symbols[token]) for token in np.asarray(batch["tokens"])[0]]]
  else:
    batch, texts = batch_of(opened, [TEXT], 1, LENGTH)
  found |= {"attribution": probe("attribution").read(opened, batch, texts)}
  return found, opened, "".join(texts[0])


def plain(panel) -> dict:
  """The panel as JSON holds it."""
  out = {"title": panel.title, "x_label": panel.x_label, "y_label": panel.y_label}
  if panel.heat is not None:
    return out | {"heat": np.round(np.asarray(panel.heat, float), 4).tolist()}
  return out | {
    "lines": {k: np.round(np.asarray(y, float), 4).tolist() for k, y in panel.lines.items()}
  }


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--run", required=True, help="folder of a finished run")
  parser.add_argument("--out", required=True, help="stem of the .json and the pictures")
  args = parser.parse_args()

  from jaxlm.analysis.pictures import draw
  from jaxlm.experiments.reproduce.pages import require_clean
  from jaxlm.experiments.runner import provenance

  require_clean(draft=False)
  made = provenance()  # of the files that are read now, whatever is edited meanwhile
  found, opened, text = readings(args.run)
  saved = {
    "run": "/".join(pathlib.Path(args.run).parts[-2:]),
    "step": opened.step,
    "text": text,
    "probes": {
      kind: {"numbers": reading.numbers, "panels": [plain(p) for p in reading.panels]}
      for kind, reading in found.items()
    },
  } | made
  stem = pathlib.Path(args.out)
  stem.parent.mkdir(parents=True, exist_ok=True)
  stem.with_name(stem.name + ".json").write_text(json_text.dumps(saved, indent=1) + "\n")
  for kind, reading in found.items():
    draw(reading, stem.with_name(f"{stem.name}-{kind}.png"), title=f"{kind}, {saved['run']}")
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
