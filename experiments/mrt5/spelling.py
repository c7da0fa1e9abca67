"""MrT5, character tasks: spelling correction and word search.

  jaxlm data prepare spelling definitions
  python experiments/mrt5/spelling.py --scale smoke|small|paper

Source: Kallini et al., "MrT5", arXiv 2410.20771, evaluation notebooks (docs/specs/mrt5.md, section
10), on the suite of Huang et al. (2023), fine-tuned from continued pretraining. Ours are stand-ins
from scratch (configs/mrt5/spelling.py), so only the claims compare.
"""

from experiments.mrt5.deletion import deletion
from experiments.mrt5.models import rows
from jaxlm.experiments import Column, Scale, Table, paper

CONFIG = "configs/mrt5/spelling.py"
SEARCH = {
  "data": dict(
    kind="word_search",
    definitions="prepared:definitions",
    batch_size=32,
    seq_len=128,
    target_len=16,
  )
}
ACCURACY, REDUCTION, RUNTIME = "sequence accuracy", "sequence reduction", "runtime"
PUBLISHED = {  # accuracy, reduction, ms
  "spelling_byt5": (66.73, 0.0, 3.88),
  "spelling_mrt5": (63.18, 50.54, 3.01),
  "spelling_bp": (54.81, 49.30, 3.24),
  "spelling_cp": (57.29, 50.0, 2.98),
  "search_byt5": (76.61, 0.0, 6.75),
  "search_mrt5": (72.02, 74.53, 2.75),
  "search_bp": (74.33, 69.78, 3.77),
  "search_cp": (68.23, 75.0, 3.15),
}

TABLE = Table(
  name="mrt5-spelling",
  title="MrT5: character tasks",
  rows=rows(CONFIG, 0.5, 2, prefix="spelling")
  + rows(CONFIG, 0.3, 4, prefix="search", overrides=SEARCH),
  columns=[
    Column(ACCURACY, "sequence_accuracy"),
    Column(REDUCTION, "deleted"),
    Column(RUNTIME, "cpu_ms"),
    Column("token accuracy", "accuracy"),
  ],
  scales={
    "smoke": Scale(
      "d_model 128, 4 + 2 layers, gate at block 2, 4,000 steps of 32 rows", config=CONFIG
    ),
    "small": Scale(
      "d_model 256, 6 + 3 layers, gate at block 3, 20,000 steps of 128 rows",
      config=CONFIG,
      overrides={
        "model.d_model": 256,
        "model.d_ff": 512,
        "model.d_kv": 64,
        "model.num_encoder_layers": 6,
        "model.num_decoder_layers": 3,
        "model.reduction.layer": 3,
        "train.steps": 20_000,
        "objective.delay": 4000,
      },
    ),
    "paper": Scale(
      "ByT5-small from scratch on the stand-ins, 20,000 steps of 128 rows",
      config=CONFIG,
      overrides={
        "model.d_model": 1472,
        "model.d_ff": 3584,
        "model.num_heads": 6,
        "model.d_kv": 64,
        "model.num_encoder_layers": 12,
        "model.num_decoder_layers": 4,
        "model.reduction.layer": 3,
        "model.dtype": "bfloat16",
        "train.steps": 20_000,
        "optimizer.learning_rate": 1e-4,
        "objective.controller.k_i": 1e-5,
      },
    ),
  },
  measure=deletion(num_rows=2048, split="test", timed=True),
  published={
    (row, column): paper(value, "evaluation notebook, character tasks")
    for row, values in PUBLISHED.items()
    for column, value in zip((ACCURACY, REDUCTION, RUNTIME), values)
  },
  claims={
    "spelling: MrT5 is more accurate than both poolings at half the sequence": lambda t: (
      t["spelling_mrt5", ACCURACY] - max(t["spelling_bp", ACCURACY], t["spelling_cp", ACCURACY])
    ),
    "word search: boundary pooling is more accurate than MrT5": lambda t: (
      t["search_bp", ACCURACY] - t["search_mrt5", ACCURACY]
    ),
  },
  source="arXiv 2410.20771, evaluation notebooks; one seed",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
