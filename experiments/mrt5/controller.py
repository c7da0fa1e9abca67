"""MrT5: the deletion rate on its way to the controller's target.  Figure.

  python experiments/mrt5/controller.py --scale smoke|small|paper [--workdir
  runs/mrt5-diagnostic/smoke]

The rows are `diagnostic.py`'s rows with a target; with that table's work folder they are not
trained again. The law (docs/specs/mrt5.md, section 3): err = target - rate; p <- 0.9 p + 0.1 k_p
err; i <- i + k_i err; alpha = max(0, p + i).
"""

import dataclasses

from experiments.mrt5 import diagnostic
from jaxlm.experiments import Column, Figure, Table

TARGETS = {"vowel_target": 0.18, "vowel_target_30": 0.30, "vowel_then_30": 0.30}
EVALUATED = "deleted in evaluation (%)"

TABLE = Table(
  name="mrt5-controller",
  runs="mrt5-diagnostic",
  title="MrT5: deletion rate and the controller's target",
  rows=[
    dataclasses.replace(
      diagnostic.TABLE.row(name),
      label=f"target {100 * target:.0f} %" + (", begun from the other" if "then" in name else ""),
    )
    for name, target in TARGETS.items()
  ],
  columns=[Column(EVALUATED, "deleted"), Column("token accuracy (%)", "accuracy")],
  scales=diagnostic.TABLE.scales,
  measure=diagnostic.TABLE.measure,
  claims={
    f"{name}: within 2 points of {100 * target:.0f} %": lambda t, name=name, target=target: (
      2 - abs(t[name, EVALUATED] - 100 * target)
    )
    for name, target in TARGETS.items()
  },
  figure=Figure(
    "deleted",
    "Share of encoder tokens deleted",
    "log step (50 training steps each)",
    "deleted share",
    marks=lambda config: {
      config["objective"]["delay"] / config["train"]["log_every"]: "controller begins (18 %)"
    },
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
