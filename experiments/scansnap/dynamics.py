"""Scan and snap (arXiv 2305.16380): the population-gradient dynamics of one attention layer.

  python experiments/scansnap/dynamics.py --scale smoke

Four readings of one trajectory: attention by type of token over steps, logits against frequency, entropy
over steps by ratio of the two learning rates, and the same with Adam. The attention itself begins as the
frequencies, so its order says nothing; the order of the logits is what training made. The rates are small,
because the theorems are of gradient flow: with a rate of 50 the decoder is done in one step.
"""

import numpy as np

from jaxlm.experiments import Column, Figure, Measured, Row, Scale, Table

POINTS = 200


def measure(trained, overrides_at) -> Measured:
  from jaxlm.analysis.theory import scan_and_snap as ss

  c = trained.config
  one = ss.task(c["classes"], c["distinct"], c["common"], np.random.default_rng(c["seed"]))
  how = ss.Training(c["steps"], c["eta_y"], c["eta_z"], c["optimizer"])
  # Every step counts for the snap: with a fast decoder the first ones are over soon.
  found = ss.train(one, how, points=min(c["steps"], 20_000))
  at = ss.snap(found)
  b = ss.by_type(one, found.attention)
  rates = np.diff(found.z.max(axis=(1, 2)))
  half = max(at // 2, 1)
  z_end = found.z[-1]
  mine = np.stack([one.distinct_V == n for n in range(c["classes"])])
  numbers = {
    "distinct@0": b["distinct"][0],
    "distinct": b["distinct"][-1],
    "common": b["common"][-1],
    "z@common": float(z_end[:, one.distinct_V == -1].mean()),
    "z@distinct": float(z_end[mine].mean()),
    "rank@half": ss.rank_correlation(one, found.z[half]),
    "rank": ss.rank_correlation(one, found.z[at]),
    "rank@end": ss.rank_correlation(one, found.z[-1]),
    "snap": float(found.steps[at]),
    "entropy": float(ss.entropy(found.attention)[-1]),
    "largest": float(found.attention[-1].max(axis=1).mean()),
    "slowing": float(rates[-1] / rates.max()),
    "loss": float(found.loss[-1]),
  }
  thin = slice(None, None, max(1, len(found.steps) // POINTS))
  curves = {
    "entropy": [float(x) for x in ss.entropy(found.attention)[thin]],
    "distinct": [float(x) for x in b["distinct"][thin]],
  }
  return Measured({k: float(v) for k, v in numbers.items()}, {}, curves)


BASE = dict(classes=3, distinct=8, common=8, optimizer="sgd", eta_y=0.25, eta_z=0.05)


def row(name, label, **settings) -> Row:
  return Row(name, settings=BASE | settings, label=label)


ROWS = [
  row("ratio_1", "SGD, ratio 1", eta_y=0.05),
  row("ratio_5", "SGD, ratio 5"),
  row("ratio_50", "SGD, ratio 50", eta_y=2.5),
  row("adam", "Adam, ratio 10", optimizer="adam", eta_y=0.01, eta_z=0.001),
]
RANK, SNAP, ENTROPY = (
  "logit and frequency, rank correlation at the snap",
  "step of the snap",
  "final entropy",
)

TABLE = Table(
  name="scansnap",
  title="Attention of one layer under the population gradient",
  rows=ROWS,
  columns=[
    Column("distinct tokens, start", "distinct@0", 3),
    Column("distinct tokens, end", "distinct", 3),
    Column("logit of common tokens", "z@common", 3),
    Column("logit of distinct tokens", "z@distinct", 3),
    Column("half way there", "rank@half", 3),
    Column(RANK, "rank", 3),
    Column("at the end", "rank@end", 3),
    Column(SNAP, "snap", 0),
    Column(ENTROPY, "entropy", 3),
    Column("largest weight", "largest", 3),
    Column("last growth / fastest", "slowing", 4),
  ],
  scales={
    "smoke": Scale(
      "3 classes, 8 tokens of each class, 8 common ones, 4,000 steps; seconds a row on one core",
      num_seeds=6,
      overrides={"steps": 4000},
    ),
    "small": Scale(
      "the same, 400,000 steps",
      num_seeds=6,
      overrides={"steps": 400_000},
    ),
  },
  measure=measure,
  source="arXiv 2305.16380; its claims are theorems, so no column of the paper's",
  claims={
    "distinct tokens win over common ones": lambda t: (
      t["ratio_5", "logit of distinct tokens"] - t["ratio_5", "logit of common tokens"]
    ),
    "common tokens' logits fall": lambda t: -t["ratio_5", "logit of common tokens"],
    "their logits grow in the order of frequency (rank correlation of 0.9 at the snap)": lambda t: (
      t["ratio_5", RANK] - 0.9
    ),
    "growth slows to a tenth": lambda t: 0.1 - t["ratio_5", "last growth / fastest"],
    "and does not reach one token": lambda t: 0.9 - t["ratio_5", "largest weight"],
    "a larger ratio snaps earlier": lambda t: t["ratio_1", SNAP] - t["ratio_50", SNAP],
    "and leaves more tokens": lambda t: t["ratio_50", ENTROPY] - t["ratio_1", ENTROPY],
    "with Adam too, distinct tokens win over common ones": lambda t: (
      t["adam", "logit of distinct tokens"] - t["adam", "logit of common tokens"]
    ),
  },
  figure=Figure(
    "entropy",
    "Entropy of the attention",
    "step",
    "nats",
    spacing=lambda config: max(1, config["steps"] // POINTS),
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
