"""Insertion language models, Table 2: texts from nothing, by a judge's likelihood, with entropy and
length beside it.

  python experiments/ilm/table2.py --scale smoke|small|paper      (or: jaxlm table experiments/ilm/table2.py …)

Source: Patel et al., "Insertion Language Models", arXiv 2505.05755. smoke and small read WordNet's
definitions (`jaxlm data prepare glosses`); their judges are a jaxlm ARM trained on the other half
of the documents and, from outside, the trigram model of pocketsphinx (`pip install
'jaxlm[bench]'`). A likelihood alone says little: short and repeated texts are likely.
"""

from experiments.ilm.text_rows import ROWS, RUNS, SCALES, main_judge, sampling, trigram
from experiments.ilm.texts import generated_texts
from jaxlm.experiments import Column, Table, paper
from jaxlm.experiments.verdict import ascending

NLL, LENGTH, ENTROPY = "NLL per token", "length", "entropy"
NUM_TEXTS = 200
# NLL under Llama-3.2-3B and mean length; the data's own lengths are 205 and 28, their NLL is
# unknown to us.
PUBLISHED = {
  "stories": {"arm": (2.11, 201), "mdm": (2.54, 985), "ilm": (2.14, 119)},
  "lm1b": {"arm": (3.94, 30), "mdm": (4.81, 85), "ilm": (4.67, 21)},
}


def published():
  """Second hand, as quoted in public reviews of the paper."""
  place = "Table 2, second hand"
  out = {
    (row, column): tuple(paper(PUBLISHED[size][row][i], place, size=size) for size in PUBLISHED)
    for row in ("arm", "mdm", "ilm")
    for i, column in enumerate((NLL, LENGTH))
  }
  return out | {
    ("judge", LENGTH): (paper(205, place, size="stories"), paper(28, place, size="lm1b"))
  }


def measure(trained, overrides_at):
  masked = trained.config["model"]["kind"] == "masked_diffusion"
  passes = dict(passes=trained.config["data"]["seq_len"]) if masked else {}
  return generated_texts(
    NUM_TEXTS, {"judge": main_judge, "trigram": trigram}, of_data=("judge",), **sampling(), **passes
  )(trained, overrides_at)


TABLE = Table(
  name="ilm-table2",
  title="Insertion language models, Table 2: unconditional generation",
  rows=[ROWS[name] for name in ("judge", "arm", "mdm", "ilm")],
  runs=RUNS,
  scales=SCALES,
  measure=measure,
  columns=[
    Column(NLL, "nll@judge"),
    Column(ENTROPY, "entropy@judge"),
    Column(LENGTH, "length@judge", 1),
    Column("empty texts", "empty@judge", 3),
    Column("NLL per word, trigram", "nll@trigram"),
    Column("words, trigram", "length@trigram", 1),
    Column("words unknown to it", "unknown@trigram", 3),
  ],
  published=published(),
  source="arXiv 2505.05755, Table 2, as quoted in public reviews of the paper, not checked against it; nats, judge Llama-3.2-3B",
  claims={
    "left to right is likeliest, then ILM, then masked diffusion": lambda t: ascending(
      t["arm", NLL], t["ilm", NLL], t["mdm", NLL]
    ),
    "ILM's texts are shorter than the data's": lambda t: t["judge", LENGTH] - t["ilm", LENGTH],
    "masked diffusion's texts are longer than the data's": lambda t: (
      t["mdm", LENGTH] - t["judge", LENGTH]
    ),
  },
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
