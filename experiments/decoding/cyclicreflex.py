"""CyclicReflex on search traces that we built: a demonstration of the schedule, no evidence about reasoning models.

  python experiments/decoding/cyclicreflex.py --scale smoke|small

Source: "CyclicReflex", arXiv 2506.11077, whose claim is about models that reason at length. Here `back` plays
the part of a reflection token in a search task whose traces go back too often (jaxlm/data/tasks/
backtracking.py), under a budget of tokens. The grid is chosen on one set of instances and judged on another.
Periods are a quarter and half of the budget; at an eighth, which is 2, every offset would be 0. The control
has the offsets of the wave in random order, its grid chosen in the same way.
"""

from jaxlm.experiments import Column, Measured, Row, Scale, Table

CONFIG = "configs/decoding/tasks.py:backtracking"
PROBLEMS, BUDGET, TEMPERATURE = 192, 16, 0.7
CONSTANT = (-3.0, -1.0, 1.0, 3.0)
AMPLITUDES, PERIODS = (1.0, 3.0, 5.0), (4, 8)


def grid(kind: str, back: int) -> list:
  from jaxlm.generation.engine.cyclic_reflex import Add, Cyclic, RandomPhase

  if kind == "plain":
    return [()]
  if kind == "constant":
    return [(Add((back,), v),) for v in CONSTANT]
  if kind == "random":
    return [(RandomPhase((back,), a, c),) for a in AMPLITUDES for c in PERIODS]
  shift = 0.5 if kind == "shifted" else 0.0
  return [(Cyclic((back,), a, c, shift),) for a in AMPLITUDES for c in PERIODS]


def measure(trained, overrides_at) -> Measured:
  import numpy as np

  from jaxlm.generation.left_to_right import LeftToRight
  from jaxlm.generation.sampling import Sampling
  from jaxlm.training.config import run_config

  if not trained.settings:
    return Measured({}, {}, {})
  cfg = run_config(trained.config)
  data = cfg.data
  every = data.random_access("test", 0)
  halves = [[every[i] for i in range(h * PROBLEMS, (h + 1) * PROBLEMS)] for h in (0, 1)]

  def run(processors, problems, seed):
    sampling = Sampling(TEMPERATURE, processors=processors)
    engine = LeftToRight(cfg.model, sampling, stops=(data.special_tokens.eos,))
    prompts = [[*p.question, data.special_tokens.bos] for p in problems]
    answers = engine.generate(trained.params, prompts, BUDGET, seed=seed).answers
    solved = np.mean([data.score(p, a) for p, a in zip(problems, answers)])
    backs = np.mean([np.sum(a == data.back) for a in answers])
    return float(solved), float(backs), float(np.mean([len(a) for a in answers]))

  tried = [
    (run(p, halves[0], 0)[0], i, p) for i, p in enumerate(grid(trained.settings["kind"], data.back))
  ]
  best = max(tried, key=lambda x: (x[0], -x[1]))[2]
  solved, backs, length = run(best, halves[1], 1)
  note = {"chosen": repr(best[0]) if best else "none"}
  return Measured({"solved": solved, "backs": backs, "length": length}, note, {})


SOLVED = "solved within the budget"
LABELS = {
  "plain": "plain",
  "constant": "best constant offset",
  "cyclic": "best cyclic offset",
  "shifted": "best cyclic offset, half a period later",
  "random": "best of the wave's offsets in random order",
}

TABLE = Table(
  name="decoding-cyclicreflex",
  title="A miniature of our own making: offsets on the token that goes back",
  rows=[
    Row("model", CONFIG, label="(the model that all rows decode)"),
    *(Row(k, evaluate_from="model", label=l, settings={"kind": k}) for k, l in LABELS.items()),
  ],
  columns=[
    Column(SOLVED, "solved", 3),
    Column("`back` per trace", "backs"),
    Column("tokens", "length", 1),
  ],
  scales={
    "smoke": Scale(
      "2 layers of width 64, trees of 6 levels, 2,500 steps of 32 traces, 16 tokens per answer",
      num_seeds=3,
    ),
    "small": Scale("20,000 steps", overrides={"train.steps": 20_000}),
  },
  measure=measure,
  claims={
    "the best cyclic offset solves more than the best constant one, on fresh instances": lambda t: (
      t["cyclic", SOLVED] - t["constant", SOLVED]
    ),
    "the best constant offset solves more than plain decoding": lambda t: (
      t["constant", SOLVED] - t["plain", SOLVED]
    ),
  },
  source="arXiv 2506.11077; the miniature is no evidence about reasoning models",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
