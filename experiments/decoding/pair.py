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


def beside(trained: Trained, row: str):
  """What `open_model` gives of another row of the table, with the same seed."""
  from jaxlm.checkpoint.opening import open_model

  path = pathlib.Path(trained.workdir)
  return open_model(path.parents[1] / row / path.name)


def draft_of(trained: Trained):
  """(config, params) of the draft that was trained beside a target."""
  opened = beside(trained, "draft")
  return opened.config, opened.params


def prompts(trained: Trained, number: int, length: int = 24) -> list[list[int]]:
  """The first bytes of windows of the validation text, at even distances."""
  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  store = cfg.data.store("validation")
  tokens = np.asarray(store.tokens)
  starts = np.linspace(0, len(tokens) - length - 1, number).astype(int)
  return [tokens[s : s + length].astype(int).tolist() for s in starts]


def decode_pair(trained: Trained, engine_of, num_prompts: int, new: int, batch_size: int, seed=0):
  """(Counts over all prompts, seconds without compilation, answers) of a drafted engine.

  engine_of(model, draft) -> the engine.
  """
  import time

  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  draft, draft_params = draft_of(trained)
  engine = engine_of(cfg.model, draft)
  params = {"target": trained.params, "draft": draft_params}
  texts, new_B, calls_B, accepted_B, answers, seconds = (
    prompts(trained, num_prompts),
    [],
    [],
    [],
    [],
    0,
  )
  for turn in (0, 1):  # the first compiles
    new_B, calls_B, accepted_B, answers = [], [], [], []
    start = time.perf_counter()
    for at in range(0, len(texts), batch_size):
      batch = batch_of(engine, texts[at : at + batch_size], new, seed + at)
      rows, counts = engine.decode_counted(params, batch)
      new_B.append(counts.new)
      calls_B.append(counts.calls)
      accepted_B.append(counts.accepted)
      answers += [row.sequence[row.begin :] for row in rows]
      if turn == 0:
        break
    seconds = time.perf_counter() - start
  from jaxlm.generation.engine.drafted import Counts

  return Counts(*map(np.concatenate, (new_B, calls_B, accepted_B))), seconds, answers


def batch_of(engine, texts, new: int, seed: int):
  """A batch as `generate` makes it."""
  import jax

  from jaxlm.generation.base import Batch, Prompt, row_keys

  keys_B = row_keys(jax.random.key(seed), len(texts))
  return Batch([Prompt(t) for t in texts], np.full(len(texts), new, np.int32), keys_B, None)


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
