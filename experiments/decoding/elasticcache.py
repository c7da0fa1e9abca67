"""Elastic-Cache: how much of a masked-diffusion decoder has to be computed again, and what it costs.

  python experiments/decoding/elasticcache.py --scale smoke|small

Source: Nguyen-Tri et al., "Attention Is All You Need for KV Cache in Diffusion LLMs", arXiv 2510.14973. The
second half of validation rows is masked and filled; accuracy is the share of its bytes that are the text's.
The paper's times are of 8 B models; here the share of layer-token computations is counted.
"""

from experiments.decoding.pair import CONFIG, SMALL
from jaxlm.experiments import Column, Measured, Row, Scale, Table

GAMMAS, PERIODS = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0), (2, 4, 8)
TEXTS, WINDOW = 24, 16


def measure(trained, overrides_at) -> Measured:
  import numpy as np

  from jaxlm.generation.engine.elastic import Elastic
  from jaxlm.training.config import run_config

  if not trained.settings:
    return Measured({}, {}, {})
  cfg = run_config(trained.config)
  mask = cfg.objective.mask
  engine = Elastic(cfg.model, mask, window=WINDOW, confidence=0.9, **trained.settings)
  rows = iter(cfg.data.build("validation", seed=0, repeat=True))
  texts = np.concatenate([next(rows)["tokens"] for _ in range(-(-TEXTS // cfg.data.batch_size))])
  right, computed, whole, steps = [], 0, 0, 0
  for text in texts[:TEXTS]:
    half = len(text) // 2
    masked = np.concatenate([text[:half], np.full(len(text) - half, mask)]).astype(np.int32)
    found, cost = engine.fill(trained.params, masked)
    right.append(np.mean(found[half:] == text[half:]))
    computed, whole, steps = computed + cost.computed, whole + cost.whole, steps + cost.steps
  return Measured(
    {
      "accuracy": float(np.mean(right)),
      "share": computed / whole,
      "per_step": TEXTS * (len(texts[0]) // 2) / steps,
    },
    {},
    {},
  )


SHARE, ACCURACY = "share computed", "accuracy"

TABLE = Table(
  name="decoding-elasticcache",
  title="Keys and values computed again where they drift",
  rows=[
    Row(
      "model",
      f"{CONFIG}:blocks",
      {"objective.block_lens": [0]},
      label="(the model that all rows decode)",
    ),
    *(
      Row(f"gamma{g}", evaluate_from="model", label=f"gamma {g}", settings={"gamma": g})
      for g in GAMMAS
    ),
    *(
      Row(
        f"period{n}",
        evaluate_from="model",
        label=f"all, every {n} steps",
        settings={"gamma": 1e-6, "period": n},
      )
      for n in PERIODS
    ),
  ],
  columns=[
    Column(SHARE, "share", 3),
    Column(ACCURACY, "accuracy", 3),
    Column("tokens per step", "per_step"),
  ],
  scales={
    "smoke": Scale(
      "3 layers of width 96, bytes of two novels, rows of 64, 1,000 steps of 1,024 bytes",
      num_seeds=3,
    ),
    "small": Scale("the same at context 256, 20,000 steps of 16,384 bytes", overrides=SMALL),
  },
  measure=measure,
  claims={
    # That gamma 1 computes everything is so by construction, and a unit test; it is no claim.
    "a larger gamma computes more: 0.5 before 0.99": lambda t: (
      t["gamma0.99", SHARE] - t["gamma0.5", SHARE]
    ),
    "gamma 0.9 computes less than 60 %": lambda t: 0.6 - t["gamma0.9", SHARE],
    "at an accuracy within 0.01 of the whole": lambda t: (
      0.01 - abs(t["gamma1.0", ACCURACY] - t["gamma0.9", ACCURACY])
    ),
  },
  source="arXiv 2510.14973 (speed-ups of 8.7 and 45.1 in the abstract are times of 8 B models)",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
