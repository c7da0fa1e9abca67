"""A base model of documents in three registers, and one tuned on polite answers alone: for two tables."""

from experiments.decoding.pair import beside
from jaxlm.experiments import Row, Scale
from jaxlm.experiments.table import Trained

CONFIG = "configs/decoding/tasks.py:registers"
RUNS = "decoding-registers"
TUNED = 8  # entities that tuning tells about; the others are asked about

ROWS = [
  Row("base", CONFIG, label="base"),
  Row(
    "sft",
    CONFIG,
    {
      "data.shares": [0, 0, 1.0],
      "data.last": TUNED,
      "data.turns": 1,
      "data.seq_len": 96,
      "train.steps": 300,
      "optimizer.learning_rate": 1e-3,
    },
    label="tuned on polite answers",
    begins_from="base",
  ),
]

SCALES = {
  "smoke": Scale(
    "3 layers of width 96, bytes, 24 entities of 3 facts, 1,500 steps of 16 documents of up to 4 turns, tuned for 300 "
    "on 8 entities",
    num_seeds=3,
  ),
  "small": Scale(
    "6 layers of width 384, 200 entities, 20,000 steps of 64 documents",
    overrides={
      "model.d_model": 384,
      "model.num_layers": 6,
      "model.unroll": 6,
      "data.num_entities": 200,
      "data.batch_size": 64,
      "train.steps": 20_000,
    },
  ),
}


def base_of(trained: Trained):
  """Parameters of the base model that was trained beside."""
  return beside(trained, "base").params


def questions(trained: Trained, number: int):
  """Facts of entities that tuning did not tell about."""
  import dataclasses

  from jaxlm.training.config import run_config

  data = run_config(trained.config).data
  facts = dataclasses.replace(data, first=TUNED, last=None).facts()
  return [facts[i * len(facts) // number] for i in range(min(number, len(facts)))]


def prompt_of(text: str) -> list[int]:
  """BOS and the bytes of a document's beginning."""
  return [257, *text.encode()]


#: An answer ends with its line, or with the document.
STOPS = (10, 258)
