"""Lexinvariant language models: a trained model against exact Bayes over all substitution ciphers,
on a toy source.

  python experiments/lexinvariant/bayes.py --scale smoke|small|paper      (or: jaxlm table experiments/lexinvariant/bayes.py …)

One bigram source over a few symbols, fresh ciphers. A lexinvariant predictor cannot do better than
the mixture over all ciphers (docs/specs/lexinvariant.md, section 1), whose regret against the
source is at most log V! over a whole text; a trained one should come down to it. The exact
posterior also says how much of a cipher can be known at all: the yardstick of a probe that reads
the model's states. The paper has the theorem and no such experiment: every number here is ours.
"""

from experiments.lexinvariant.mixture import above_exact_mixture
from jaxlm.experiments import Column, Figure, Row, Scale, Table
from jaxlm.experiments.verdict import ascending

CONFIG = "configs/lexinvariant/bigram.py"


def after(part: int):
  """overrides_at of the checkpoint at 1/part of the training."""
  return lambda multiple: {"train.steps": lambda c: c["train"]["steps"] // part}


ROWS = [
  Row(
    "early",
    evaluate_from="lexinvariant",
    overrides_at=after(16),
    label="lexinvariant, 1/16 of training",
  ),
  Row(
    "quarter",
    evaluate_from="lexinvariant",
    overrides_at=after(4),
    label="lexinvariant, 1/4 of training",
  ),
  Row("lexinvariant", CONFIG, label="lexinvariant, trained"),
  Row(
    "tables",
    evaluate_from="lexinvariant",
    overrides_at=lambda multiple: {"eval.num_tables": 8},
    label="lexinvariant, 8 tables averaged",
  ),
  Row(
    "seen_or_new",
    CONFIG,
    {"model.embedding.output": "seen_or_new"},
    label="lexinvariant, seen-or-new output",
  ),
  Row("standard", CONFIG, {"model.embedding.random_prob": 0.0}, label="learned embedding"),
]

SCALES = {
  "smoke": Scale(
    "5 symbols, 3 layers, d_model 64, 6,400 steps of 16 texts of 64 symbols; three minutes a row on one core",
    num_seeds=3,
  ),
  "small": Scale(
    "6 symbols, 4 layers, d_model 256, 20,000 steps of 128 texts of 256 symbols",
    num_seeds=3,
    overrides={
      "model.d_model": 256,
      "model.num_layers": 4,
      "model.unroll": 4,
      "model.vocab_size": 6,
      "data.num_symbols": 6,
      "data.seq_len": 256,
      "data.batch_size": 128,
      "data.rows": 1024,
      "optimizer.learning_rate": 1e-3,
      "schedule.warmup_steps": 500,
      "train.steps": 20_000,
      "train.save_every": 1250,
      "train.keep_every": 1250,
    },
  ),
  "paper": Scale(
    "7 symbols, 12 layers, d_model 1024, 100,000 steps of 64 texts of 512 symbols",
    num_seeds=3,
    overrides={
      "model.d_model": 1024,
      "model.num_layers": 12,
      "model.unroll": 1,
      "model.mixer.num_heads": 8,
      "model.vocab_size": 7,
      "model.dtype": "bfloat16",
      "data.num_symbols": 7,
      "data.seq_len": 512,
      "data.batch_size": 64,
      "data.rows": 256,
      "optimizer.learning_rate": 6e-4,
      "schedule.warmup_steps": 2000,
      "train.steps": 100_000,
      "train.save_every": 6250,
      "train.keep_every": 6250,
    },
  ),
}

TABLE = Table(
  name="lexinvariant-bayes",
  title="Lexinvariant models against exact Bayes over all ciphers (nats per symbol)",
  rows=ROWS,
  columns=[
    Column("loss", "loss", 4),
    Column("exact mixture", "exact", 4),
    Column("known cipher", "source", 4),
    Column("above the mixture", "excess", 4),
    Column("above, first eighth", "excess@first", 4),
    Column("above, last eighth", "excess@last", 4),
    Column("lowest part, standard errors", "lowest", 1),
    Column("deciphered by the mixture, %", "deciphered", 1),
    Column("by a probe of the states, %", "probed", 1),
  ],
  scales=SCALES,
  measure=above_exact_mixture(probe_texts=1024, probe_steps=300),
  source="the theorem is the paper's (arXiv 2305.16349), the experiment ours: no published numbers",
  claims={
    "training brings the lexinvariant model down to the exact mixture": lambda t: (
      ascending(*(t[r, "above the mixture"] for r in ("lexinvariant", "quarter", "early"))),
      "above it by {:.4f}, {:.4f}, {:.4f} nats".format(
        *(t[row, "above the mixture"] for row in ("early", "quarter", "lexinvariant"))
      ),
    ),
    "within 0.1 nats of it": lambda t: 0.1 - t["lexinvariant", "above the mixture"],
    "from above: no eighth of the positions lies below it by more than two standard errors": lambda t: (
      min(t[row, "lowest part, standard errors"] for row in ("early", "quarter", "lexinvariant"))
      + 2,
      "lowest {:.1f}".format(
        min(t[row, "lowest part, standard errors"] for row in ("early", "quarter", "lexinvariant"))
      ),
    ),
    "averaging tables does not cost anything": lambda t: (
      t["lexinvariant", "loss"] - t["tables", "loss"]
    ),
  },
  figure=Figure(
    "loss",
    "Loss by position on ciphered texts of one source",
    "position",
    "loss (nats per symbol)",
    references={"exact": "exact mixture", "source": "cipher known"},
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
