"""MrT5: time, FLOPs and memory of a forward pass against the encoder's capacity behind the gate.
Nothing is trained.

  python experiments/mrt5/runtime.py --scale smoke|small|paper

A table's rows come from a run folder, so `full` takes one optimiser step on a few rows; its numbers
do not depend on it. The paper's runtimes are of trained models at their own deletion rates
(span_corruption.py).
"""

from experiments.mrt5.deletion import capacity_cost
from jaxlm.experiments import Column, Row, Scale, Table
from jaxlm.experiments.verdict import Exact, ascending

CONFIG = "configs/mrt5/span_corruption.py"
SHARES = (0.75, 0.5, 0.375, 0.25)
WALL, CPU, FLOPS, FORMULA, MEMORY = (
  "wall ms",
  "CPU ms",
  "GFLOP",
  "GFLOP, formula",
  "temporaries, MB",
)


def at(share: float):
  return lambda multiple: {
    "objective.capacities": lambda c: (round(share * c["data"]["seq_len"]),),
    "objective.overflow": "drop",
  }


ROWS = [Row("full", CONFIG, label="100 %")] + [
  Row(
    f"slots_{round(1000 * share)}",
    evaluate_from="full",
    overrides_at=at(share),
    label=f"{100 * share:g} %",
  )
  for share in SHARES
]
ONE_STEP = {
  "train.steps": 1,
  "train.log_every": 1,
  "train.save_every": 0,
  "schedule.warmup_steps": 0,
  "eval.num_tokens": 1,
}

TABLE = Table(
  name="mrt5-runtime",
  title="MrT5: cost of a forward pass by capacity behind the gate",
  rows=ROWS,
  columns=[
    Column(WALL, "wall_ms", 1),
    Column(CPU, "cpu_ms", 1),
    Column(FLOPS, "gflop", 3),
    Column(FORMULA, "formula_gflop", 3),
    Column(MEMORY, "temp_mb", 1),
  ],
  scales={
    "smoke": Scale(
      "d_model 384, 6 + 2 layers, gate at block 2, inputs of 512 bytes, batch 4, float32; per example, median of "
      "15 passes after compilation",
      config=CONFIG,
      overrides=ONE_STEP
      | {
        "model.d_model": 384,
        "model.d_ff": 1024,
        "model.d_kv": 64,
        "model.num_heads": 6,
        "model.num_encoder_layers": 6,
        "model.unroll": 1,
        "data.seq_len": 512,
        "data.sources": ("mini:en",),
        "data.mean_span": 20.0,
        "data.batch_size": 4,
      },
    ),
    "small": Scale(
      "ByT5-small, inputs of 1,024 bytes, batch 4, bfloat16",
      config="configs/mrt5/byt5_small.py",
      overrides=ONE_STEP | {"data.sources": ("mini:en",), "data.batch_size": 4},
    ),
    "paper": Scale(
      "ByT5-small, inputs of 1,024 bytes, batch 16, float32",
      config="configs/mrt5/byt5_small.py",
      overrides=ONE_STEP
      | {"data.sources": ("mini:en",), "data.batch_size": 16, "model.dtype": "float32"},
    ),
  },
  measure=capacity_cost(),
  claims={
    "time falls with every smaller capacity": lambda t: ascending(
      *(t[r.name, CPU] for r in ROWS[::-1])
    ),
    "FLOPs are within 2 % of the formula at every capacity": lambda t: Exact(
      all(abs(t[r.name, FLOPS] / t[r.name, FORMULA] - 1) < 0.02 for r in ROWS)
    ),
    "temporaries fall with every smaller capacity": lambda t: Exact(
      ascending(*(t[r.name, MEMORY] for r in ROWS[::-1])) > 0
    ),
  },
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
