"""The character models that figure_gap, cipher, reasoning and semi measure: the same rows, the same
scales.

A table finds a model that another one has trained if its run folder is copied: see NOTES.md of
this folder.
"""

from jaxlm.experiments import Row, Scale

CONFIG = "configs/lexinvariant/chars.py"
CODE = {"data.source": "prepared:code-py"}
STANDARD = {"model.embedding.random_prob": 0.0}  # every row learned, the rest alike


def row(name: str, overrides=None, label: str = "") -> Row:
  return Row(name, CONFIG, overrides or {}, label=label)


STANDARD_PROSE = row("standard_prose", STANDARD, "standard, prose")
LEXINVARIANT_PROSE = row("lexinvariant_prose", {}, "lexinvariant, prose")
STANDARD_CODE = row("standard_code", STANDARD | CODE, "standard, code")
LEXINVARIANT_CODE = row("lexinvariant_code", CODE, "lexinvariant, code")

SCALES = {
  "smoke": Scale(
    "2 layers, d_model 64, window 128 characters, 1,500 steps of 2,048 characters; prose is two novels (1.7 MB)"
  ),
  "small": Scale(
    "6 layers, d_model 256, window 512 characters, 30,000 steps of 16,384 characters",
    num_seeds=3,
    overrides={
      "model.d_model": 256,
      "model.num_layers": 6,
      "model.unroll": 6,
      "model.mixer.num_heads": 4,
      "model.dtype": "bfloat16",
      "data.seq_len": 512,
      "data.batch_size": 32,
      "optimizer.learning_rate": 1e-3,
      "schedule.warmup_steps": 600,
      "train.steps": 30_000,
      "train.save_every": 5000,
      "eval.num_tokens": 1_048_576,
    },
  ),
  # Spec, section 3: steps of the abstract, layers and heads of a third party's account, width,
  # context and batch from memory. The optimiser is ours, and the corpora stand for the Pile and its
  # GitHub part.
  "paper": Scale(
    "12 layers, d_model 1024, window 512 characters, 250,000 steps of 32,768 characters",
    num_seeds=1,
    overrides={
      "model.d_model": 1024,
      "model.num_layers": 12,
      "model.unroll": 1,
      "model.mixer.num_heads": 8,
      "model.dtype": "bfloat16",
      "model.remat": "minimal",
      "data.seq_len": 512,
      "data.batch_size": 64,
      "optimizer.learning_rate": 6e-4,
      "schedule.warmup_steps": 5000,
      "train.steps": 250_000,
      "train.save_every": 10_000,
      "eval.num_tokens": 2_097_152,
    },
  ),
}
