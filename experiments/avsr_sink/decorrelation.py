"""Decorrelation from the first token (arXiv 2510.22603) without speech: what the penalty does to sinks and
massive activations.

  python experiments/avsr_sink/decorrelation.py --scale smoke

The paper's claim is of speech: word errors at strong downsampling, with a large language model behind
encoders. This table tests the loss and its side effects in the model and on the data of attnsink. Where the row of
weight 0 has no sinks behind the first key, there is nothing to remove, and the claim says so.
"""

from experiments.attnsink.sinks import CONFIG, SCALES
from jaxlm.experiments import Column, Figure, Row, Scale, Table
from jaxlm.experiments.readings import sinks

WEIGHTS = (0, 0.1, 1, 10, 100, 10_000)


def name(weight) -> str:
  return f"w{weight:g}".replace(".", "_")


ROWS = [
  Row(
    name(weight),
    CONFIG,
    {
      "model.mixer": dict(kind="attention", num_heads=4),
      "objective": dict(kind="decorrelation", weight=float(weight)),
    },
    label=f"weight {weight:g}",
  )
  for weight in WEIGHTS
]
COS, SINK, LOSS = "cosine to the first", "sink rate of key 1, %", "loss"
INTERMEDIATE, RATIO = "sinks behind the first key", "max / median of |x|"


def falling(t, title):
  values = [t[name(w), title] for w in WEIGHTS]
  return min(a - b for a, b in zip(values, values[1:]))


def halved(t):
  """At the least weight whose sink rate is half of that without penalty."""
  if not t["w0", SINK]:
    return None, "no head is a sink without the penalty"
  for weight in WEIGHTS[1:]:
    if t[name(weight), SINK] <= 0.5 * t["w0", SINK]:
      gap = t[name(weight), LOSS] / t["w0", LOSS] - 1
      return 0.01 - gap, f"weight {weight:g}, loss {100 * gap:+.1f} %"
  return None, "no weight halves the sink rate"


def removed(t):
  if t["w0", INTERMEDIATE] < 0.05:
    return None, "no sinks behind the first key without the penalty: nothing to remove"
  return t["w0", INTERMEDIATE] - t["w10", INTERMEDIATE]


TABLE = Table(
  name="avsr-sink",
  title="Sinks and massive activations under a penalty on the cosine to the first token",
  rows=ROWS,
  columns=[
    Column(LOSS, "loss", 3),
    Column(COS, "cosine", 3),
    Column(SINK, "sink", 1),
    Column("mean weight of key 1", "first", 4),
    Column(INTERMEDIATE, "intermediate", 2),
    Column(RATIO, "ratio", 0),
  ],
  scales={key: Scale(**vars(scale)) for key, scale in SCALES.items() if key != "paper"},
  measure=sinks(),
  source="arXiv 2510.22603; its numbers are word error rates of speech, which this table does not measure",
  claims={
    "the cosine falls with the weight": lambda t: falling(t, COS),
    "the loss stays within 1 % where the sink rate has halved": halved,
    "sinks behind the first key go": removed,
    "massive activations shrink": lambda t: t["w0", RATIO] - t["w10", RATIO],
  },
  figure=Figure(
    "first",
    "Mean weight of the first key by training step",
    "step",
    "mean weight",
    spacing=lambda config: config["train"]["keep_every"],
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
