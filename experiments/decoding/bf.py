"""The branching factor of a base model, of one tuned on answers of one register, and of the base nudged.

  python experiments/decoding/bf.py --scale smoke|small

Source: Yang and Holtzman, "How Alignment Shrinks the Generative Horizon", arXiv 2506.17871 (base models near
12, aligned ones near 1.2 in the first version; 2 to 5 times overall in a later one; from memory). The nudged
base model goes on behind the first bytes of the tuned model's answers. As the branching factor falls along an
answer by itself, it is compared with the base model behind as many bytes of its own answers.
"""

from experiments.decoding.register_pair import (
  ROWS,
  RUNS,
  SCALES,
  STOPS,
  base_of,
  prompt_of,
  questions,
)
from jaxlm.experiments import Column, Figure, Measured, Row, Table

QUESTIONS, SAMPLES, NEW, NUDGE = 6, 24, 48, 3


def measure(trained, overrides_at) -> Measured:
  """bf: mean over questions. curves: BF by position of the answer, mean over questions."""
  import numpy as np

  from jaxlm.data.tasks.registers import query
  from jaxlm.evaluation.branching_factor import of_answers
  from jaxlm.generation.left_to_right import LeftToRight
  from jaxlm.generation.sampling import Sampling
  from jaxlm.training.config import run_config

  cfg, sampling = run_config(trained.config), Sampling(top_p=0.9)
  nudge = (trained.settings or {}).get("nudge")
  engine = LeftToRight(cfg.model, sampling, stops=STOPS)
  found, curves = [], []
  for number, fact in enumerate(questions(trained, QUESTIONS)):
    prompt = prompt_of(query(fact))
    params = trained.params
    if nudge:
      params = base_of(trained)
      begins = trained.params if nudge == "tuned" else params
      first = engine.generate(begins, [prompt], NUDGE, seed=number).answers[0]
      prompt = [*prompt, *map(int, first)]
    answers = engine.generate(params, [prompt] * SAMPLES, NEW, seed=number).answers
    answers = [a.tolist() for a in answers if len(a)]
    if answers:
      one = of_answers(cfg.model, params, prompt, answers, sampling)
      if (one.alive_T >= SAMPLES // 2).any():
        found.append(one)
        curves.append(one.by_position_T[:12])
  if not found:
    return Measured({}, {"bf": "fewer than half of the samples had a token"}, {})
  width = min(map(len, curves))
  return Measured(
    {
      "bf": float(np.mean([f.bf for f in found])),
      "aep": float(np.mean([f.aep for f in found])),
      "first": float(np.mean([c[0] for c in curves])),
      "last": float(np.mean([f.by_position_T[f.alive_T >= SAMPLES // 2][-1] for f in found])),
    },
    {},
    {"bf": np.mean([c[:width] for c in curves], axis=0).tolist()},
  )


BF, FIRST = "branching factor", "in the first window"
LAST = "where half of the samples are left"

TABLE = Table(
  name="decoding-bf",
  title="Branching factor of a base model and a tuned one",
  rows=[
    *ROWS,
    Row(
      "own",
      evaluate_from="sft",
      label="base, behind 3 bytes of its own",
      settings={"nudge": "own"},
    ),
    Row(
      "nudged",
      evaluate_from="sft",
      label="base, behind 3 bytes of the tuned",
      settings={"nudge": "tuned"},
    ),
  ],
  columns=[
    Column(BF, "bf"),
    Column("by likelihood (AEP)", "aep"),
    Column(FIRST, "first"),
    Column(LAST, "last"),
  ],
  scales=SCALES,
  measure=measure,
  claims={
    "the tuned model branches less than the base": lambda t: t["base", BF] - t["sft", BF],
    "from its first bytes on": lambda t: t["base", FIRST] - t["sft", FIRST],
    "the base model branches less towards the end of an answer": lambda t: (
      t["base", FIRST] - t["base", LAST]
    ),
    "three bytes of the tuned model's answer narrow the base more than three of its own": lambda t: (
      t["own", BF] - t["nudged", BF]
    ),
  },
  figure=Figure("bf", "Branching factor by position", "byte of the answer", "branching factor"),
  source="arXiv 2506.17871",
  runs=RUNS,
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
