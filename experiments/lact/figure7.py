"""LaCT, Figure 7: what the memory is made of. State size, optimiser, linear against SwiGLU fast
weights.

  python experiments/lact/figure7.py --scale smoke|small

Source: Zhang et al., "Test-Time Training Done Right", arXiv 2505.23884v1, Figures 6 and 7: curves,
no table. Same data as figure5.py. Rows change `expansion` (inner over head width) at a fixed number
of heads; the state is 3 d^2 expansion / num_heads numbers per layer for SwiGLU and d^2 / num_heads
for linear, so that half of SwiGLU's is still 1.5 of linear's. The paper's "even with a smaller
state", which needs an expansion below 1/3, is not tested.
"""

from experiments.lact.recall import loss_by_position
from experiments.lact.rows import MANY_KEYS, MICRO, SMALL, at_scale, mixers
from jaxlm.experiments import Column, Row, Scale, Table
from jaxlm.experiments.verdict import ascending


def fast(update=None, **fields):
  """The Muon row with other fast weights; a fixed number of heads overrides the scale's."""
  base = mixers()["lact_muon"]

  def mixer(c):
    out = dict(at_scale(base)(c))
    out["fast"] = dict(out["fast"], **fields)
    if update is not None:
      out["fast"]["update"] = update
    return out

  return {"model.mixer": mixer}


GD, MOMENTUM = dict(momentum=False), dict(momentum=True)
TABLE = Table(
  name="lact-figure7",
  title="LaCT, Figure 7: state size, optimiser, network of the fast weights",
  rows=[
    Row("half_state", MICRO, fast(expansion=0.5), label="SwiGLU, Muon, half the state"),
    Row("state", MICRO, fast(), label="SwiGLU, Muon"),
    Row("double_state", MICRO, fast(expansion=2.0), label="SwiGLU, Muon, twice the state"),
    Row("gd", MICRO, fast(GD), label="SwiGLU, gradient descent"),
    Row("momentum", MICRO, fast(MOMENTUM), label="SwiGLU, momentum"),
    Row("linear", MICRO, fast(network="linear"), label="linear, Muon, a third of the state"),
    Row("linear_gd", MICRO, fast(GD, network="linear"), label="linear, gradient descent"),
  ],
  columns=[Column("first eighth", "loss@start", 3), Column("last quarter", "loss@end", 3)],
  scales={
    "smoke": Scale(
      "1 layer, d_model 64, window = chunk = 32, rows of 128 questions and answers about 40 keys, 400 steps of "
      "2,048 bytes",
      config=MICRO,
      num_seeds=3,
      overrides=MANY_KEYS,
    ),
    "small": Scale(
      "8 layers, d_model 512, window = chunk = 256, rows of 4,096 bytes with 384 words, 20,000 steps of 65,536 bytes",
      config=MICRO,
      overrides=SMALL,
    ),
  },
  measure=loss_by_position({"start": (0, 1 / 8), "end": (0.75, 1)}),
  claims={
    "a larger state is better at the end of the row": lambda t: ascending(
      *(t[row, "last quarter"] for row in ("double_state", "state", "half_state"))
    ),
    "Muon < momentum < gradient descent": lambda t: ascending(
      *(t[row, "last quarter"] for row in ("state", "momentum", "gd"))
    ),
    "SwiGLU with half its usual state (1.5 of linear's) beats linear, both with Muon": lambda t: (
      t["linear", "last quarter"] - t["half_state", "last quarter"]
    ),
  },
  source="arXiv 2505.23884v1, Figures 6 and 7: curves without numbers",
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
