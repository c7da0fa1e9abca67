"""MrT5, placement of the delete gate: bits per byte against runtime, gate before encoder block 1 ..
5, target 50 %.

  python experiments/mrt5/gate_placement.py --scale smoke|small|paper

The paper shows a figure only and chooses 3 (arXiv 2410.20771; docs/specs/mrt5.md, section 10). An
early gate knows less and saves more.
"""

from experiments.mrt5 import span_corruption as spans
from jaxlm.experiments import Column, Row, Table

LAYERS = (1, 2, 3, 4, 5)

TABLE = Table(
  name="mrt5-gate-placement",
  title="MrT5: where the gate stands",
  rows=[
    Row(
      f"layer_{g}",
      spans.CONFIG,
      {
        "model.reduction.layer": g,
        "model.num_encoder_layers": lambda c: max(6, c["model"]["num_encoder_layers"]),
      },
      label=f"before block {g}",
    )
    for g in LAYERS
  ],
  columns=[
    Column(spans.BITS, "bits", 3),
    Column(spans.RUNTIME, "cpu_ms"),
    Column(spans.REDUCTION, "deleted", 1),
  ],
  scales=spans.TABLE.scales,
  measure=spans.TABLE.measure,
  claims={
    "a gate before block 1 is faster than one before block 5": lambda t: (
      t["layer_5", spans.RUNTIME] - t["layer_1", spans.RUNTIME]
    ),
    "a gate before block 3 has fewer bits per byte than one before block 1": lambda t: (
      t["layer_1", spans.BITS] - t["layer_3", spans.BITS]
    ),
  },
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
