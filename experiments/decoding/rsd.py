"""Recursive speculative decoding: tokens per target call of chains and trees of equal size.

  python experiments/decoding/rsd.py --scale smoke|small

Source: Jeon et al., "Recursive Speculative Decoding", arXiv 2402.14160. A budget is the number of drafted
nodes that the target reads in one pass. The paper's models have 7 to 70 B parameters; its numbers are
not compared.
"""

from experiments.decoding.pair import RUNS, SCALES, TRAINED, bits_per_byte, decode_pair
from jaxlm.experiments import Column, Measured, Row, Table
from jaxlm.experiments.verdict import ascending

PROMPTS, NEW = 32, 48
TEMPERATURES = (0.6, 1.0)

#: name -> {budget: drafting}. Byte models agree on most bytes, so that narrow and deep trees pay.
TREES = {
  "chain": {12: ("replacement", (1,) * 12), 24: ("replacement", (1,) * 24)},
  "replacement": {12: ("replacement", (2, *[1] * 5)), 24: ("replacement", (3, *[1] * 7))},
  "rsd_c": {12: ("rsd_c", (2, *[1] * 5)), 24: ("rsd_c", (3, *[1] * 7))},
  "rsd_s": {12: ("rsd_s", (2, 6)), 24: ("rsd_s", (3, 8))},
  "dyspec": {12: ("dyspec", (12, 12)), 24: ("dyspec", (24, 12))},
}
BUDGETS = (12, 24)
LABELS = {
  "chain": "chain",
  "replacement": "tree, with replacement",
  "rsd_c": "RSD-C",
  "rsd_s": "RSD-S",
  "dyspec": "DySpec",
}


def drafting(kind: str, numbers):
  from jaxlm.generation.engine.dyspec import DySpec
  from jaxlm.generation.engine.rsd import StochasticBeam, WithoutReplacement, WithReplacement

  make = {
    "replacement": WithReplacement,
    "rsd_c": WithoutReplacement,
    "rsd_s": lambda n: StochasticBeam(*n),
    "dyspec": lambda n: DySpec(*n),
  }[kind]
  return make(tuple(numbers))


def efficiency(trained, kind, numbers, temperature: float, num_prompts=PROMPTS, new=NEW) -> float:
  """Tokens per target call."""
  from jaxlm.generation.engine.trees import TreeSpeculative
  from jaxlm.generation.sampling import Sampling

  def engine_of(model, draft):
    return TreeSpeculative(
      model, draft, Sampling(temperature=temperature), drafting=drafting(kind, numbers)
    )

  counts, _, _ = decode_pair(trained, engine_of, num_prompts, new, num_prompts)
  return counts.block_efficiency


def measure(trained, overrides_at) -> Measured:
  if not trained.settings:
    return Measured({"bpb": bits_per_byte(trained)}, {}, {})
  name = trained.settings["tree"]
  numbers = {
    f"n{budget}@{temperature}": efficiency(trained, *how, temperature)
    for budget, how in TREES[name].items()
    for temperature in TEMPERATURES
  }
  return Measured(numbers, {}, {})


def title(budget: int, temperature: float) -> str:
  return f"{budget} nodes, temperature {temperature}"


COLUMNS = [(b, t) for b in BUDGETS for t in TEMPERATURES]

TABLE = Table(
  name="decoding-rsd",
  title="Tokens per target call at an equal number of drafted nodes",
  rows=[
    *TRAINED,
    *(
      Row(name, evaluate_from="target", label=LABELS[name], settings={"tree": name})
      for name in TREES
    ),
  ],
  columns=[
    Column("bits per byte", "bpb"),
    *(Column(title(b, t), f"n{b}@{t}") for b, t in COLUMNS),
  ],
  scales=SCALES,
  measure=measure,
  claims={
    "at 24 nodes and temperature 1: with replacement < RSD-C < RSD-S": lambda t: ascending(
      *(t[name, title(24, 1.0)] for name in ("replacement", "rsd_c", "rsd_s"))
    ),
    "RSD-S gives more than a chain of as many nodes, at both budgets and temperatures": lambda t: (
      min(t["rsd_s", title(*c)] - t["chain", title(*c)] for c in COLUMNS)
    ),
  },
  source="arXiv 2402.14160, section 5 (models of 7 to 70 B)",
  runs=RUNS,
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
