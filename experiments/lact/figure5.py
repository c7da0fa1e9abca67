"""LaCT, Figure 5: loss by position. Who still learns from what lies beyond the window?

  python experiments/lact/figure5.py --scale smoke|small|paper      (or: jaxlm table experiments/lact/figure5.py ...)

Source: Zhang et al., "Test-Time Training Done Right", arXiv 2505.23884v1, Figure 5 (a), (c):
curves, no table. The reduced scales read what only the row's own past can answer: questions about a
table of the row's own (smoke), or a few hundred random words (small). Past the reach of the window
only a memory can help.
"""

from experiments.lact.recall import loss_by_position
from experiments.lact.rows import LABELS, MANY_KEYS, MICRO, SMALL, row
from jaxlm.experiments import Column, Figure, Scale, Table
from jaxlm.experiments.verdict import ascending

CONFIG = MICRO


TABLE = Table(
  name="lact-figure5",
  title="LaCT, Figure 5: loss by position",
  rows=[row(name) for name in LABELS],
  columns=[
    Column("first eighth", "loss@start", 3),
    Column("second quarter", "loss@middle", 3),
    Column("last quarter", "loss@end", 3),
  ],
  scales={
    "smoke": Scale(
      "1 layer, d_model 64, window = chunk = 32, rows of 128 questions and answers about 40 keys (chance: "
      "ln 4 = 1.386), 400 steps of 2,048 bytes",
      config=CONFIG,
      num_seeds=3,
      overrides=MANY_KEYS,
    ),
    "small": Scale(
      "8 layers, d_model 512, window = chunk = 256, rows of 4,096 bytes with 384 words, 20,000 steps of 65,536 bytes",
      config=CONFIG,
      overrides=SMALL,
    ),
    "paper": Scale(
      "760M of configs/lact/lm_760m.py on Long-Data-Collections, 32,768 tokens",
      config="configs/lact/lm_760m.py",
    ),
  },
  measure=loss_by_position({"start": (0, 1 / 8), "middle": (0.25, 0.5), "end": (0.75, 1)}),
  claims={
    "LaCT (Muon) still learns beyond the window: its last quarter is below window attention's by 0.2": lambda t: (
      t["swa", "last quarter"] - 0.2 - t["lact_muon", "last quarter"]
    ),
    "so does LaCT with plain gradient descent": lambda t: (
      t["swa", "last quarter"] - 0.2 - t["lact_gd", "last quarter"]
    ),
    "window attention does not: last quarter within 0.05 of the second": lambda t: (
      0.05 - abs(t["swa", "last quarter"] - t["swa", "second quarter"])
    ),
    "LaCT (Muon) ends below GLA + window and DeltaNet + window": lambda t: (
      min(t["gla", "last quarter"], t["delta_rule", "last quarter"])
      - t["lact_muon", "last quarter"]
    ),
    "Muon < momentum < gradient descent at the end": lambda t: ascending(
      *(t[f"lact_{row}", "last quarter"] for row in ("muon", "momentum", "gd"))
    ),
  },
  source="arXiv 2505.23884v1, Figure 5 (a), (c): curves without numbers",
  figure=Figure(
    "loss",
    "Loss by position",
    "position (1/64 of the row)",
    "loss (nats per target)",
    marks=lambda config: (
      {64 * 32 / config["data"]["seq_len"]: "window"} if config["model"]["d_model"] < 512 else {}
    ),
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
