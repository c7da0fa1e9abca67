"""A target and a draft of one text, trained once for several tables, and prompts to continue."""

import pathlib

import numpy as np

from jaxlm.experiments import Row, Scale
from jaxlm.experiments.table import Trained

CONFIG = "configs/decoding/bytes.py"
RUNS = "decoding-pair"

#: The draft stands first: the rows of the target measure with it.
TRAINED = [
  Row("draft", f"{CONFIG}:draft", label="the draft alone"),
  Row("target", f"{CONFIG}:target", label="the target alone"),
]

SMALL = {
  "train.steps": 20_000,
  "data.batch_size": 64,
  "data.seq_len": 256,
  "data.source": "text:large/{split}/*.txt",
}

SCALES = {
  "smoke": Scale(
    "target 4 layers of width 128, draft 1 layer of width 64, bytes of two novels, context 64, 1,000 steps of 1,024 "
    "bytes",
    num_seeds=3,
  ),
  "small": Scale("the same at context 256, 20,000 steps of 16,384 bytes", overrides=SMALL),
}


def draft_of(trained: Trained):
  """(config, params) of the draft that was trained beside a target."""
  from jaxlm.checkpoint.opening import open_model

  path = pathlib.Path(trained.workdir)
  opened = open_model(path.parents[1] / "draft" / path.name)
  return opened.model, opened.params


def prompts(trained: Trained, number: int, length: int = 24) -> list[list[int]]:
  """The first bytes of windows of the validation text, at even distances."""
  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  store = cfg.data.store("validation")
  tokens = np.asarray(store.tokens if hasattr(store, "tokens") else store)
  starts = np.linspace(0, len(tokens) - length - 1, number).astype(int)
  return [tokens[s : s + length].astype(int).tolist() for s in starts]


def bits_per_byte(trained: Trained) -> float:
  """Of the validation text."""
  from jaxlm.evaluation.perplexity import evaluate_lengths
  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  [e] = evaluate_lengths(
    cfg.model,
    trained.params,
    cfg.data,
    [cfg.data.seq_len],
    split="validation",
    num_tokens=trained.config["eval"]["num_tokens"],
  )
  return e.bits_per_byte
