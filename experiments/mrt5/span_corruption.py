"""MrT5, span corruption: bits per target byte against the reduction of the sequence, MrT5 and four
baselines at equal reduction.

  python experiments/mrt5/span_corruption.py --scale smoke|small|paper

Source: Kallini et al., "MrT5", arXiv 2410.20771. The runtimes are those of the evaluation notebooks
(docs/specs/mrt5.md, section 10: 15 languages, ByT5-small; their hardware is not known to us); bits
per byte stand in a figure only, the order at equal reduction (MrT5 below the others) is from memory
and is the claim. Ours: CPU time per example of a forward pass, tokens deleted hard. BPB is per
target token, sentinels and end included.
"""

from experiments.mrt5.deletion import deletion
from jaxlm.experiments import Column, Row, Scale, Table, paper

CONFIG = "configs/mrt5/span_corruption.py"
BITS, REDUCTION, RUNTIME = "bits per byte", "sequence reduction", "runtime"
TARGETS = (0.3, 0.4, 0.5, 0.6, 0.7)


def reduction(kind: str, **fields):
  """The override that puts another reduction at the gate's place; the gate's controller then has
  nothing to do.
  """

  def made(c):
    out = {k: v(c) if callable(v) else v for k, v in fields.items()}
    return dict(kind=kind, layer=c["model"]["reduction"]["layer"], **out)

  return {"model.reduction": made, "objective.controller": None}


def rows():
  yield Row("byt5", CONFIG, {"model.reduction": None, "objective.controller": None}, label="ByT5")
  for target in TARGETS:
    yield Row(
      f"mrt5_{round(100 * target)}",
      CONFIG,
      {"objective.controller.target": target},
      label=f"MrT5, target {100 * target:.0f} %",
    )
  yield Row("random_50", CONFIG, reduction("random", probability=0.5), label="random, 50 %")
  yield Row("fixed_50", CONFIG, reduction("fixed", amount=0.5), label="fixed, ends of words, 50 %")
  # The predictor's share of boundaries is drawn to its prior.
  yield Row(
    "bp_50",
    CONFIG,
    reduction("boundaries", prior=0.5, d_ff=lambda c: c["model"]["d_ff"]),
    label="boundary pooling (BPT5), prior 50 %",
  )
  yield Row(
    "cp_50", CONFIG, reduction("strided", rate=2), label="strided convolution (CANINE), rate 2"
  )


RUNTIMES = {
  "byt5": 44.29,
  "mrt5_30": 34.99,
  "mrt5_40": 31.95,
  "mrt5_50": 29.99,
  "mrt5_60": 28.24,
  "mrt5_70": 24.48,
}
OTHERS = ("random_50", "fixed_50", "bp_50", "cp_50")
SIZE = {
  "model.d_model": 256,
  "model.d_ff": 512,
  "model.d_kv": 64,
  "model.num_encoder_layers": 6,
  "data.seq_len": 512,
  "data.batch_size": 64,
  "data.mean_span": 20.0,
  "train.steps": 10_000,
  "objective.delay": 1000,
  "optimizer.learning_rate": 1e-3,
}

TABLE = Table(
  name="mrt5-span-corruption",
  title="MrT5: span corruption",
  rows=list(rows()),
  columns=[
    Column(BITS, "bits", 3),
    Column(REDUCTION, "deleted", 1),
    Column(RUNTIME, "cpu_ms"),
    Column("wall time", "wall_ms"),
    Column("mean width", "mean_width", 1),
  ],
  scales={
    "smoke": Scale(
      "d_model 128, 5 + 2 layers, reduction at block 2, inputs of 128 bytes, 900 steps of 8 rows; two novels and "
      "the UDHR in 14 languages; 480 validation rows of 15 languages; ms of one core per example of 32",
      config=CONFIG,
    ),
    "small": Scale(
      "d_model 256, 6 + 2 layers, reduction at block 2, inputs of 512 bytes, 10,000 steps of 64 rows of ml-medium "
      "and en-medium by language",
      config=CONFIG,
      overrides=SIZE
      | {
        "data.sources": (
          "prepared:en-medium",
          *(
            f"prepared:ml-{code}"
            for code in (
              "fr",
              "es",
              "de",
              "el",
              "bg",
              "ru",
              "tr",
              "ar",
              "vi",
              "th",
              "zh",
              "hi",
              "ur",
            )
          ),
        )
      },
    ),
    "paper": Scale(
      "ByT5-small, inputs of 1,024 bytes, 5,000 steps of 1,024 rows; from scratch on what packages hold, not from "
      "ByT5's checkpoint on mC4",
      config="configs/mrt5/byt5_small.py",
    ),
  },
  measure=deletion(num_rows=480, timed=True),
  published={
    (row, RUNTIME): paper(value, "evaluation notebook, span corruption, small, ms")
    for row, value in RUNTIMES.items()
  },
  claims={
    "at 50 % reduction MrT5's bits per byte are below those of the four baselines": lambda t: (
      min(t[row, BITS] for row in OTHERS) - t["mrt5_50", BITS]
    ),
    "the controller holds 50 % within 2 points": lambda t: 2 - abs(t["mrt5_50", REDUCTION] - 50),
    "MrT5 at 50 % costs at most 0.1 bits per byte over ByT5": lambda t: (
      t["byt5", BITS] + 0.1 - t["mrt5_50", BITS]
    ),
    "at 50 % a forward pass takes less time than ByT5's": lambda t: (
      t["byt5", RUNTIME] - t["mrt5_50", RUNTIME]
    ),
  },
  source="arXiv 2410.20771, evaluation notebooks (small); bits per byte are in a figure only, their order from memory",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
