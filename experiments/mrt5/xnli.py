"""MrT5, XNLI: zero-shot accuracy in 15 languages after English fine-tuning. Needs the published
files (data.folder).

  python experiments/mrt5/xnli.py --scale paper

Source: Kallini et al., "MrT5", arXiv 2410.20771, evaluation notebooks (docs/specs/mrt5.md, section
10). No package holds XNLI, so there is no smaller scale; a run from the paper's starting point sets
train.init_from (configs/mrt5/finetune.py).
"""

from experiments.mrt5.deletion import by_language
from experiments.mrt5.models import rows
from jaxlm.experiments import Column, Scale, Table, paper

CONFIG = "configs/mrt5/finetune.py:xnli"
LANGUAGES = (
  "ar",
  "bg",
  "de",
  "el",
  "en",
  "es",
  "fr",
  "hi",
  "ru",
  "sw",
  "th",
  "tr",
  "ur",
  "vi",
  "zh",
)
ALL, REDUCTION, RUNTIME, ENGLISH = "15 languages", "reduction", "runtime", "English"
PUBLISHED = {
  "byt5": (64.72, 0.0, 14.17, 80.30),
  "mrt5": (65.31, 55.60, 7.77, 80.20),
  "bp": (59.37, 53.95, 9.46, 78.90),
  "cp": (49.94, 50.07, 9.02, 73.53),
}

TABLE = Table(
  name="mrt5-xnli",
  title="MrT5: XNLI, sequence accuracy",
  rows=rows(CONFIG, 0.5, 2),
  columns=[
    Column(ALL, "sequence_accuracy"),
    Column(REDUCTION, "deleted"),
    Column(RUNTIME, "wall_ms"),
    *(
      Column(ENGLISH if language == "en" else language, f"sequence_accuracy@{language}")
      for language in LANGUAGES
    ),
  ],
  scales={
    "paper": Scale(
      "ByT5-small, English training, 5,010 test rows a language; steps and batch size are ours"
    )
  },
  measure=by_language(LANGUAGES, num_rows=5010, hard=True),
  published={
    (row, column): paper(value, "evaluation notebook, XNLI")
    for row, values in PUBLISHED.items()
    for column, value in zip((ALL, REDUCTION, RUNTIME, ENGLISH), values)
  },
  claims={
    "MrT5 is at most a point below ByT5 at half the sequence": lambda t: (
      t["mrt5", ALL] - (t["byt5", ALL] - 1)
    ),
    "MrT5 is above both poolings": lambda t: t["mrt5", ALL] - max(t["bp", ALL], t["cp", ALL]),
  },
  source="arXiv 2410.20771, evaluation notebooks; one seed",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
