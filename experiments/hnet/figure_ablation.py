"""H-Net, Figure 7: without smoothing, without the straight-through confidence, without the cosine
router.

  python experiments/hnet/figure_ablation.py --scale smoke|small

Source: arXiv 2507.07955v2, Figure 7 (curves, no table): removing smoothing is worst, the
compression ratio fluctuates.
"""

from experiments.hnet.chunks import bits_and_chunks
from experiments.hnet.hnet_scales import PAPER, RECIPE, SMALL
from jaxlm.experiments import Column, Figure, Row, Scale, Table, by_step

TINY = "configs/hnet/tiny.py:1stage"


def direct_router(config):
  stages = [dict(stage) for stage in config["model"]["stages"]]
  for stage in stages[:-1]:
    stage["router"] = dict(kind="direct")
  return stages


def same_rate(config):
  """Without the slow rate that keeps the cosine router near its identity: this one starts at
  random.
  """
  return [pair for pair in config["optimizer"]["lr_multipliers"] if pair[0] != "/router/"]


TABLE = Table(
  runs="hnet",
  name="hnet-figure-ablation",
  title="H-Net, Figure 7: what each part of dynamic chunking is for",
  rows=[
    Row("1stage", TINY, label="H-Net (1-stage)"),
    Row("no_smoothing", TINY, {"model.join": dict(smooth=False)}, label="without smoothing"),
    Row("no_ste", TINY, {"model.join": dict(confident=False)}, label="without STE"),
    Row(
      "no_cosine",
      TINY,
      {"model.stages": direct_router, "optimizer.lr_multipliers": same_rate},
      label="without cosine routing",
    ),
  ],
  columns=[
    Column("bits per byte", "bpb", 3),
    Column("bytes per chunk", "bytes_per_chunk", 2),
    Column("F1, SpaceByte's rule", "at_spaces", 3),
    Column("random cuts", "at_spaces_chance", 3),
    Column("fluctuation, %", "fluctuation", 1),
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
  source="arXiv 2507.07955v2, Figure 7: curves without numbers",
  claims={
    f"the whole is better than {row.replace('_', ' ')}": lambda t, row=row: (
      t[row, "bits per byte"] - t["1stage", "bits per byte"]
    )
    for row in ("no_smoothing", "no_ste", "no_cosine")
  }
  | {
    "without smoothing the compression fluctuates more (second half of training)": lambda t: (
      t["no_smoothing", "fluctuation, %"] - t["1stage", "fluctuation, %"]
    )
  },
  figure=Figure(
    "tokens_per_chunk",
    "Compression over training",
    "training step",
    "bytes per chunk",
    smooth=3,
    spacing=by_step,
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
