"""ZeroTuning (arXiv 2505.11739) on the models of `experiments/attnsink/sinks.py`: the first key's
attention times gamma, with no training.

  python experiments/zerotuning/gamma.py --scale smoke

The stand-in for a pretrained model is a small model with a sink; the unnormalised sigmoid, which has
none, is the negative control. Half of the validation rows calibrate (head profile, search), the other
half are scored. A real checkpoint: `jaxlm convert --from hf FOLDER --to OUT`, then
`jaxlm.open_model(OUT)` in place of the row's model; tests/analysis/test_zero_tuning.py says what the
edit must equal.
"""

import numpy as np

from experiments.attnsink.sinks import ROWS, SCALES
from jaxlm.experiments import Column, Figure, Measured, Scale, Table

GRID = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)
ROWS_READ = 128


def measure(trained, overrides_at) -> Measured:
  from jaxlm.analysis import zero_tuning as zt
  from jaxlm.experiments.readings import opened, validation

  model = opened(trained)
  whole = validation(model.data, ROWS_READ)
  halves = [{k: x[i::2] for k, x in whole.items()} for i in (0, 1)]
  cfg = model.config
  shape = (cfg.num_layers, cfg.mixers[0].num_heads)

  def read(batch, gamma):
    out = zt.logits(model, batch, gamma)
    weight = np.asarray(batch["loss_weights"], np.float64)
    return zt.output_entropy(out, weight), zt.accuracy(out, batch["targets"], weight)

  numbers, curves = {}, {}
  plain = read(halves[1], 1.0)
  for group, chosen in zt.layer_groups(shape[0]).items():
    found = [read(halves[1], np.where(chosen[:, None], g, np.ones(shape))) for g in GRID]
    curves[f"entropy@{group}"] = [entropy for entropy, _ in found]
    curves[f"accuracy@{group}"] = [100 * right for _, right in found]
    numbers[f"effect@{group}"] = max(abs(entropy - plain[0]) for entropy, _ in found)
    for g, (entropy, right) in zip(GRID, found):
      numbers |= {f"entropy@{group}@{g}": entropy, f"accuracy@{group}@{g}": 100 * right}
  up = zt.profile(*shape, lambda gamma: -read(halves[0], gamma)[0])
  chosen = up if up.mean() >= 0.5 else ~up  # the larger class
  by_entropy = zt.search(GRID, chosen, lambda gamma: read(halves[0], gamma)[0])
  by_accuracy = zt.search(GRID, chosen, lambda gamma: -read(halves[0], gamma)[1])
  numbers |= {
    "up": 100 * float(up.mean()),
    "plain": 100 * plain[1],
    "gamma": by_entropy,
    "unsupervised": 100 * read(halves[1], np.where(chosen, by_entropy, 1.0))[1],
    "supervised": 100 * read(halves[1], np.where(chosen, by_accuracy, 1.0))[1],
  }
  return Measured(numbers, {}, curves)


EFFECT = "largest change of entropy, all layers"

TABLE = Table(
  name="zerotuning",
  title="Entropy and accuracy with the first key's attention times gamma",
  rows=[row for row in ROWS if row.name in ("softmax", "sigmoid")],
  columns=[
    Column("accuracy, gamma 1, %", "plain", 2),
    Column("gamma .2, %", "accuracy@all@0.2", 2),
    Column("gamma 5, %", "accuracy@all@5.0", 2),
    Column("entropy, gamma 1", "entropy@all@1.0", 4),
    Column("gamma .2", "entropy@all@0.2", 4),
    Column("gamma 5", "entropy@all@5.0", 4),
    Column(EFFECT, "effect@all", 4),
    Column("early third", "effect@early", 4),
    Column("late third", "effect@late", 4),
    Column("heads that work up, %", "up", 0),
    Column("gamma by entropy", "gamma", 1),
    Column("accuracy with it, %", "unsupervised", 2),
    Column("by accuracy, %", "supervised", 2),
  ],
  scales={name: Scale(**vars(scale)) for name, scale in SCALES.items() if name != "paper"},
  measure=measure,
  runs="attnsink",
  source="arXiv 2505.11739; the paper's gains are of large pretrained models, and no number of them is here",
  claims={
    "gamma changes the output where there is a sink, and less where there is none": lambda t: (
      t["softmax", EFFECT] - t["sigmoid", EFFECT]
    ),
    "the early layers react the most": lambda t: (
      t["softmax", "early third"] - t["softmax", "late third"]
    ),
    "heads differ in the direction that helps": lambda t: (
      min(t["softmax", "heads that work up, %"], 100 - t["softmax", "heads that work up, %"]) - 5
    ),
    "the gamma of least entropy raises the accuracy": lambda t: (
      t["softmax", "accuracy with it, %"] - t["softmax", "accuracy, gamma 1, %"]
    ),
  },
  figure=Figure(
    "entropy@all",
    "Output entropy by gamma, all layers",
    "gamma",
    "entropy (nats per token)",
    ticks=[str(g) for g in GRID],
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
