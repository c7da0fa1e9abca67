"""MrT5, TyDiQA-GoldP: exact match and F1 of greedily decoded answers. Needs the published files
(data.folder).

  python experiments/mrt5/tydiqa.py --scale paper

Source: Kallini et al., "MrT5", arXiv 2410.20771, evaluation notebooks (docs/specs/mrt5.md, section
10). No package holds TyDiQA, so there is no smaller scale; a run from the paper's starting point
sets train.init_from (configs/mrt5/finetune.py).
"""

from experiments.mrt5.deletion import answers
from experiments.mrt5.models import rows
from jaxlm.experiments import Column, Scale, Table, paper

EXACT, F1, REDUCTION, RUNTIME = "exact match", "F1", "reduction", "runtime"
PUBLISHED = {
  "byt5": (69.90, 79.58, 0.0, 37.22),
  "mrt5": (68.27, 77.73, 47.48, 24.83),
  "bp": (40.59, 54.04, 22.55, 32.24),
  "cp": (54.99, 65.85, 50.05, 25.32),
}

TABLE = Table(
  name="mrt5-tydiqa",
  title="MrT5: TyDiQA-GoldP",
  rows=rows("configs/mrt5/finetune.py:tydiqa", 0.5, 2),
  columns=[
    Column(EXACT, "exact"),
    Column(F1, "f1"),
    Column(REDUCTION, "deleted"),
    Column(RUNTIME, "wall_ms"),
  ],
  scales={
    "paper": Scale(
      "ByT5-small, inputs of 2,048 bytes, nine languages together; steps and batch size are ours"
    )
  },
  measure=answers(),
  published={
    (row, column): paper(value, "evaluation notebook, TyDiQA")
    for row, values in PUBLISHED.items()
    for column, value in zip((EXACT, F1, REDUCTION, RUNTIME), values)
  },
  claims={
    "MrT5 is at most two points of F1 below ByT5 at half the sequence": lambda t: (
      t["mrt5", F1] - (t["byt5", F1] - 2)
    ),
    "MrT5 is above both poolings": lambda t: t["mrt5", F1] - max(t["bp", F1], t["cp", F1]),
  },
  source="arXiv 2410.20771, evaluation notebooks; one seed",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
