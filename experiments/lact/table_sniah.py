"""LaCT, the S-NIAH table: accuracy (%) of needles found, by task and length.

  python experiments/lact/table_sniah.py --scale smoke|small|paper

Source: Zhang et al., "Test-Time Training Done Right", arXiv 2505.23884v1, RULER tables
(docs/specs/lact.md, section 6), 760M models after 40 B tokens of Long-Data-Collections. The reduced
scales train on needles themselves: their numbers say whether a memory works beyond its window, not
what a language model would score.
"""

from experiments.lact.recall import answers_found
from experiments.lact.rows import LABELS, SMALL, row
from jaxlm.experiments import Column, Scale, Table, paper
from jaxlm.experiments.verdict import ascending

CONFIG = "configs/lact/needles.py"
# The paper's lengths and, under the same column, ours: at smoke the shortest is inside the window.
LENGTHS = {"4K": 32, "8K": 64, "16K": 128, "32K": 256}
SINGLE = dict(num_keys=1, num_queries=1)
TASKS = {
  "S-NIAH-1": dict(SINGLE, haystack="noise"),
  "S-NIAH-2": dict(SINGLE, haystack="prose"),
  "S-NIAH-3": dict(SINGLE, haystack="prose", value="hex", value_chars=8),
  "multikey": dict(haystack="prose", num_keys=4, num_queries=1),
  "multiquery": dict(haystack="prose", num_keys=4, num_queries=4),
  "multivalue": dict(haystack="prose", num_keys=1, num_queries=1, values_per_key=4),
}
# S-NIAH-1 at 4K, 8K, 16K, 32K; 760M.
FIRST = {
  "full": (99.2, 96.6, 85.2, 68.0),
  "delta_rule": (84.0, 85.2, 87.8, 86.8),
  "gla": (51.8, 26.2, 14.4, 8.6),
  "lact_gd": (94.8, 53.2, 26.0, 14.8),
  "lact_momentum": (95.6, 84.8, 83.4, 84.8),
  "lact_muon": (98.0, 95.0, 92.2, 92.4),
}


def tasks(factor: int):
  """name -> overrides of the data section.

  Needles that do not fit into a length are left out, with the reason.
  """
  return {
    f"{task}@{name}": dict(fields, seq_len=factor * length)
    for task, fields in TASKS.items()
    for name, length in LENGTHS.items()
  }


TABLE = Table(
  name="lact-sniah",
  title="LaCT: needles found (%), by task and length",
  rows=[row(name, CONFIG) for name in LABELS],
  columns=[Column(f"S-NIAH-1 {n}", f"accuracy@S-NIAH-1@{n}", 1) for n in LENGTHS]
  + [
    Column(f"{t} {n}", f"accuracy@{t}@{n}", 1)
    for t in TASKS
    if t != "S-NIAH-1"
    for n in ("8K", "32K")
  ],
  scales={
    "smoke": Scale(
      "1 layer, d_model 64, window = chunk = 32, trained on S-NIAH-1 of 128 bytes with one digit as value (chance: 10), 300 "
      "steps of 24 rows; 4K-32K stand for 32, 64, 128 and 256 bytes",
      config=CONFIG,
    ),
    "small": Scale(
      "8 layers, d_model 512, window = chunk = 256, rows of 2,048 bytes of prose with four needles, 20,000 steps of 65,536 "
      "bytes; 4K-32K stand for 512, 1,024, 2,048 and 4,096 bytes",
      config=CONFIG,
      overrides=SMALL
      | {
        "data": dict(
          kind="needles",
          seq_len=2048,
          batch_size=32,
          num_keys=4,
          num_queries=4,
          haystack="prose",
          key_chars=3,
          value_chars=3,
          loss_on="all",
          rows=256,
        )
      },
    ),
    "paper": Scale(
      "760M of configs/lact/lm_760m.py after 40 B tokens, then RULER at 4K to 32K",
      config="configs/lact/lm_760m.py",
    ),
  },
  measure=lambda trained, at: answers_found(tasks(trained.config["data"]["seq_len"] // 128))(
    trained, at
  ),
  published={
    (r, f"S-NIAH-1 {n}"): paper(values[i], "S-NIAH-1, 760M")
    for r, values in FIRST.items()
    for i, n in enumerate(LENGTHS)
  },
  claims={
    "LaCT (Muon) finds needles beyond the window, window attention does not (S-NIAH-1, 16K: at smoke the training length)": lambda t: (
      t["lact_muon", "S-NIAH-1 16K"] - (t["swa", "S-NIAH-1 16K"] + 20)
    ),
    "so does LaCT with plain gradient descent": lambda t: (
      t["lact_gd", "S-NIAH-1 16K"] - (t["swa", "S-NIAH-1 16K"] + 20)
    ),
    "Muon > momentum > gradient descent (S-NIAH-1, longest)": lambda t: ascending(
      *(t[f"lact_{row}", "S-NIAH-1 32K"] for row in ("gd", "momentum", "muon"))
    ),
    "LaCT (Muon) is above GLA + window on S-NIAH-1 at every length": lambda t: min(
      t["lact_muon", f"S-NIAH-1 {n}"] - t["gla", f"S-NIAH-1 {n}"] for n in LENGTHS
    ),
  },
  source="arXiv 2505.23884v1, RULER S-NIAH, 760M; needles and haystack are ours, not RULER's sentences",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
