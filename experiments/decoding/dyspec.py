"""DySpec: accepted tokens per target call over the budget of nodes and the temperature.

  python experiments/decoding/dyspec.py --scale smoke|small

Source: Xiong et al., "DySpec", arXiv 2410.11744. Its throughput (9.1 times on 70 B models, from memory) is a
matter of hardware and is not compared. Its rule takes the draft's probability of a token for the probability that
the target accepts it. A draw of q is accepted with probability sum min(p, q), which is 1 for equal models however
flat they are: where draft and target agree, its trees are wider than they should be.
"""

from experiments.decoding.pair import RUNS, SCALES, TRAINED, bits_per_byte
from experiments.decoding.rsd import efficiency
from jaxlm.experiments import Column, Measured, Row, Table

BUDGETS, TEMPERATURES = (6, 12, 24), (0.0, 0.6, 1.0)
#: Trees of 6, 12 and 24 nodes.
TREES = {
  "chain": [("replacement", (1,) * n) for n in BUDGETS],
  "fixed": [("rsd_c", (2, 1, 1)), ("rsd_c", (2, *[1] * 5)), ("rsd_c", (3, *[1] * 7))],
  "rsd_s": [("rsd_s", (2, 3)), ("rsd_s", (2, 6)), ("rsd_s", (3, 8))],
  "dyspec": [("dyspec", (6, 6)), ("dyspec", (12, 12)), ("dyspec", (24, 12))],
}
LABELS = {"chain": "chain", "fixed": "fixed tree", "rsd_s": "RSD-S", "dyspec": "DySpec"}


def measure(trained, overrides_at) -> Measured:
  if not trained.settings:
    return Measured({"bpb": bits_per_byte(trained)}, {}, {})
  trees = TREES[trained.settings["tree"]]
  numbers = {
    f"n{budget}@{temperature}": efficiency(trained, *how, temperature)
    for budget, how in zip(BUDGETS, trees)
    for temperature in TEMPERATURES
  }
  return Measured(numbers, {}, {})


def title(budget, temperature) -> str:
  return f"{budget} nodes, temperature {temperature:g}"


CELLS = [(b, t) for b in BUDGETS for t in TEMPERATURES]

TABLE = Table(
  name="decoding-dyspec",
  title="Tokens per target call of trees that grow where acceptance is expected",
  rows=[
    *TRAINED,
    *(Row(n, evaluate_from="target", label=LABELS[n], settings={"tree": n}) for n in TREES),
  ],
  columns=[
    Column("bits per byte", "bpb"),
    *(Column(title(b, t), f"n{b}@{t}") for b, t in CELLS),
  ],
  scales=SCALES,
  measure=measure,
  claims={
    "DySpec gives at least as much as RSD-S at every budget and temperature": lambda t: min(
      t["dyspec", title(*c)] - t["rsd_s", title(*c)] for c in CELLS
    ),
    "and more than a chain of as many nodes at 12 and 24 nodes": lambda t: min(
      t["dyspec", title(*c)] - t["chain", title(*c)] for c in CELLS if c[0] > 6
    ),
    "a larger budget gives more, at every temperature": lambda t: min(
      t["dyspec", title(24, x)] - t["dyspec", title(6, x)] for x in TEMPERATURES
    ),
  },
  source="arXiv 2410.11744, section 5 (models of 7 to 70 B)",
  runs=RUNS,
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
