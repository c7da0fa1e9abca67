"""CARoPE against its controls: is it the context, at twice and at four times the training length?

  python experiments/carope/controls.py --scale smoke|small      (or: jaxlm table experiments/carope/controls.py …)

The rows of table 1 that could explain what CARoPE gains without a look at the context: RoPE with the
base that CARoPE as printed starts from, one learned constant frequency per head, and YaRN and NTK,
which stretch a trained RoPE. Their runs are table 1's (`runs/carope-table1`). What a constant
frequency learns differs much from seed to seed, so that three seeds do not decide: here are six.
"""

import dataclasses

from experiments.carope import table1
from experiments.carope.table1 import CONTROLS, DOUBLE, QUADRUPLE, TRAIN, beats
from jaxlm.experiments import Column

TABLE = dataclasses.replace(
  table1.TABLE,
  name="carope-controls",
  title="CARoPE against its controls: perplexity by evaluation length",
  runs=table1.TABLE.name,
  rows=[table1.TABLE.row(name) for name in ("carope", *CONTROLS)],
  columns=[Column(TRAIN, "ppl@1x"), Column(DOUBLE, "ppl@2x"), Column(QUADRUPLE, "ppl@4x")],
  scales={
    name: dataclasses.replace(scale, num_seeds=6)
    for name, scale in table1.SCALES.items()
    if name != "paper"
  },
  published={},
  source="the controls are ours; table 1 has the paper's numbers",
  claims={
    f"CARoPE beats {label} at {length}": beats(control, length)
    for length in (DOUBLE, QUADRUPLE)
    for control, label in CONTROLS.items()
  },
  figure=None,
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
