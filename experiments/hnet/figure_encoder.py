"""H-Net, Figure 8: Mamba-2 or attention in the encoder and decoder (m4 against T2; one T costs
about two m).

  python experiments/hnet/figure_encoder.py --scale smoke|small

Source: arXiv 2507.07955v2, Figure 8 (curves, no table): m4-m4 is best, T2-T2 worst. Reduced scales
halve both.
"""

from experiments.hnet.chunks import bits_and_chunks
from experiments.hnet.hnet_scales import PAPER, RECIPE, SMALL, at_paper
from jaxlm.experiments import Column, Figure, Row, Scale, Table, by_step

TINY = "configs/hnet/tiny.py:1stage"
LAYOUTS = {"1stage": "m2 [T4] m2", "m-T": "m2 [T4] T1", "T-m": "T1 [T4] m2", "T-T": "T1 [T4] T1"}
BPB, OTHERS = "bits per byte", ("m-T", "T-m", "T-T")


def outside(layout: str) -> dict:
  """The layers of the encoder and the decoder; at the paper's size m4 and T2 around its T22, with
  an MLP of 8/3 d_model (ours) in the attention at the bytes, which the released model has not."""

  def at(c):
    return (
      layout.replace("m2", "m4").replace("T1", "T2").replace("T4", "T22") if at_paper(c) else layout
    )

  def d_ff(c):
    own = c["model"]["stages"][0]["d_ff"]
    return 2816 if at_paper(c) and "T1" in layout else own

  return {"model.stages.0.d_ff": d_ff, "model.layout": at}


TABLE = Table(
  runs="hnet",
  name="hnet-figure-encoder",
  title="H-Net, Figure 8: layers of the encoder and decoder",
  rows=[Row(name, TINY, outside(layout), label=layout) for name, layout in LAYOUTS.items()],
  columns=[
    Column(BPB, "bpb", 3),
    Column("bytes per chunk", "bytes_per_chunk", 2),
    Column("F1, SpaceByte's rule", "at_spaces", 3),
    Column("random cuts", "at_spaces_chance", 3),
    Column("F1, blank before a word", "at_word_spaces", 3),
    Column("random cuts, blanks", "at_word_spaces_chance", 3),
    Column("MFLOP per byte", "mflop", 3),
  ],
  scales={
    "smoke": Scale(
      "widths 64/96, context 128 bytes, 1,200 steps of 1,024 bytes; minutes a row on 2 cores",
      overrides={
        "train.steps": 1200,
        "train.log_every": 10,
        "train.save_every": 0,
        "eval.every": 0,
      },
    ),
    "small": SMALL,
    "paper": Scale(RECIPE, config=f"{PAPER}:1stage_L"),
  },
  measure=bits_and_chunks(),
  source="arXiv 2507.07955v2, Figure 8: curves without numbers",
  claims={
    "Mamba-2 on both sides is best of the four": lambda t: (
      min(t[row, BPB] for row in OTHERS) - t["1stage", BPB]
    ),
    "attention on both sides is worst of the four": lambda t: (
      t["T-T", BPB] - max(t[row, BPB] for row in ("1stage", "m-T", "T-m"))
    ),
    "Mamba-2 on both sides beats attention on both": lambda t: t["T-T", BPB] - t["1stage", BPB],
  },
  figure=Figure(
    "bits_per_byte", "Training loss", "training step", "bits per byte", smooth=3, spacing=by_step
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
