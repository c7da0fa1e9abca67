"""Insertion language models, Table 3: gaps in texts, filled by a model that does not know how long
they were.

  python experiments/ilm/table3.py --scale smoke|small|paper      (or: jaxlm table experiments/ilm/table3.py …)

Source: Patel et al., "Insertion Language Models", arXiv 2505.05755. Numbers are changes in percent
from the text with its gaps closed to the filled text, mean over texts. Masked diffusion is given a
mask for every removed token, so it knows each gap's length; insertion knows only where gaps are.
Models and work folder are table 2's: what one has trained the other measures.
"""

from experiments.ilm.text_rows import ROWS, RUNS, SCALES, main_judge, sampling, trigram
from experiments.ilm.texts import filled_texts
from jaxlm.experiments import Column, Table, paper

NUM_TEXTS = 200
KINDS = {
  "single": dict(kind="single", fraction=0.2),
  "multi": dict(kind="multi", fraction=0.2, segments=3),
}


def title(kind: str, key: str = "NLL") -> str:
  return f"{kind}: {key} change (%)"


def published():
  """LM1B with a single segment and Stories with a single sentence; of multi-segment LM1B we know no
  number.
  """
  cells = {
    ("mdm", "lm1b"): -0.49,
    ("ilm", "lm1b"): -3.57,
    ("mdm", "stories"): 3.63,
    ("ilm", "stories"): 1.79,
  }
  return {
    (row, title("single")): tuple(
      paper(cells[row, size], "Table 3, second hand", size=size) for size in ("lm1b", "stories")
    )
    for row in ("mdm", "ilm")
  }


def measure(trained, overrides_at):
  kinds = KINDS
  if trained.config["data"]["seq_len"] == 1024:  # Stories: one whole sentence, as the paper's set
    kinds = KINDS | {"single": dict(kind="sentence")}
  return filled_texts(
    NUM_TEXTS, {"judge": main_judge, "trigram": trigram}, kinds, of_data=("judge",), **sampling()
  )(trained, overrides_at)


TABLE = Table(
  name="ilm-table3",
  title="Insertion language models, Table 3: infilling of unknown length",
  rows=[ROWS[name] for name in ("judge", "mdm", "ilm")],
  runs=RUNS,
  scales=SCALES,
  measure=measure,
  columns=[
    Column(title(kind, key), f"{key.lower()}@{kind}@judge", 1 if key == "length" else 2)
    for kind in KINDS
    for key in ("NLL", "entropy", "length")
  ]
  + [Column(f"{kind}: NLL change (%), trigram", f"nll@{kind}@trigram") for kind in KINDS],
  published=published(),
  source="arXiv 2505.05755, Table 3, as quoted in public reviews of the paper, not checked against it; judge Llama-3.2-3B; the "
  "numbers of multi-segment LM1B are unknown to us",
  claims={
    f"{kind}: ILM's filling lowers the NLL more than masked diffusion's": lambda t, kind=kind: (
      t["mdm", title(kind)] - t["ilm", title(kind)]
    )
    for kind in KINDS
  },
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
