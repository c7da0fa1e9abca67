"""Active and dormant heads on the Bigram-Backcopy task (arXiv 2410.13835).

  python experiments/activedormant/heads.py --scale smoke

One head a layer. Queries are told apart by whether their token is a trigger, which repeats the token
before it. Excess is what a model loses beyond the Bayes predictor on the same targets.
"""

import numpy as np

from jaxlm.experiments import Column, Figure, Measured, Row, Scale, Table
from jaxlm.experiments.readings import losses, mean_loss, opened, saved_steps, validation

CONFIG = "configs/activedormant/tiny.py"
RELU = {"model.mixer.similarity": "relu", "model.mixer.normaliser": "count"}
SGD = {
  "optimizer": dict(kind="sgd", learning_rate=0.3, momentum=0.9, weight_decay=0.0, clip_norm=1.0)
}
ROWS_READ = 64


def measure(trained, overrides_at) -> Measured:
  """Attention by kind of query, norms, and the loss without parts at the first token."""
  from jaxlm.analysis import dormant
  from jaxlm.analysis.norms import at_first_and_elsewhere
  from jaxlm.analysis.opened import observe

  model = opened(trained)
  data, cfg = model.data, model.config
  batch = validation(data, ROWS_READ)
  tokens = {"tokens": batch["tokens"]}
  trigger_BT = np.append(data.task.trigger_V, False)[batch["tokens"]]
  valid_BT = batch["loss_weights"] > 0
  bayes = data.task.bayes_loss(data.seq_len)
  T, L = batch["tokens"].shape[1], cfg.num_layers
  deep = L // 2  # of the interventions: the middle layer

  def excess(changes=None):
    nll_BT = losses(model, batch, changes)
    out = {}
    for kind, mask in (("trigger", trigger_BT), ("other", ~trigger_BT)):
      weight = {"loss_weights": batch["loss_weights"] * mask}
      out[kind] = mean_loss(nll_BT, weight) - bayes_loss(data, batch, mask)
    return out

  names = ("attention_first", "attention_near", "v", "resid", "attention")
  found = observe(model, tokens, *names)
  plain = excess()
  # The layer whose trigger queries look the most at the token before.
  before = [dormant.by_kind(x[..., 1], trigger_BT, valid_BT) for x in found["attention_near"]]
  active = int(np.argmax([x["trigger"] for x in before]))
  first = dormant.by_kind(found["attention_first"][active], trigger_BT, valid_BT)
  values = [at_first_and_elsewhere(x.reshape(*x.shape[:2], -1)) for x in found["v"]]
  stream = [at_first_and_elsewhere(x) for x in found["resid"]]
  numbers = {
    "bayes": bayes["all"],
    "excess@trigger": plain["trigger"],
    "excess@other": plain["other"],
    "start@other": first["other"],
    "start@trigger": first["trigger"],
    "before@trigger": before[active]["trigger"],
    "before@other": before[active]["other"],
    "value": values[active][0] / values[active][1],
    "peak": max(a / b for a, b in stream),
    "last": stream[-1][0] / stream[-1][1],
    "active": active,
  }
  notes = {"lead@other": "weights of ReLU attention have no logits"}
  if cfg.mixers[active].similarity == "exp":
    lead_BNT = dormant.logit_lead(found["attention"][active])
    numbers["lead@other"], notes = dormant.by_kind(lead_BNT, trigger_BT, valid_BT)["other"], {}
  cut = {
    "head": dormant.without_head(active, 0, 1),
    "diagonal": dormant.diagonal_head(active, 0, 1, T),
    "value": dormant.zero_at_first("v", active, T, 2),
    "mlp": dormant.zero_at_first("mlp_out", deep, T, 1),
  }
  for name, changes in cut.items():
    left = excess(changes)
    numbers |= {f"{name}@{kind}": left[kind] - plain[kind] for kind in left}
  curve = []
  for step in saved_steps(trained.config):
    seen = observe(opened(trained, step), tokens, "attention_first")["attention_first"][active]
    curve.append(dormant.by_kind(seen, trigger_BT, valid_BT)["other"])
  return Measured(numbers, notes, {"start": curve})


def bayes_loss(data, batch, mask_BT) -> float:
  """Loss in nats of the Bayes predictor on the targets that count under mask_BT (bool)."""
  # Targets count from x_3 on: <s> is none of the two symbols before them, and any may stand for it.
  last_BT = np.minimum(batch["tokens"], data.num_symbols - 1)
  before_BT = np.pad(last_BT[:, :-1], ((0, 0), (1, 0)))
  p_BTV = data.task.conditional(before_BT, last_BT)
  p_BT = np.take_along_axis(p_BTV, batch["targets"][..., None], axis=2)[..., 0]
  weight_BT = batch["loss_weights"] * mask_BT
  nll_BT = -np.log(np.where(weight_BT > 0, p_BT, 1.0))
  return mean_loss(nll_BT, {"loss_weights": weight_BT})


ROWS = [
  Row("three", CONFIG, label="3 layers"),
  Row("one", CONFIG, {"model.num_layers": 1, "model.unroll": 1}, label="1 layer"),
  Row("relu", CONFIG, RELU, label="3 layers, ReLU attention"),
  Row("sgd", CONFIG, SGD, label="3 layers, SGD"),
]
START, BEFORE = "weight of <s>, others", "weight of t-1, triggers"

TABLE = Table(
  name="activedormant",
  title="Where trigger and other queries look, and what the first token carries",
  rows=ROWS,
  columns=[
    Column("excess loss, triggers", "excess@trigger", 4),
    Column("excess loss, others", "excess@other", 4),
    Column(START, "start@other", 3),
    Column("weight of <s>, triggers", "start@trigger", 3),
    Column(BEFORE, "before@trigger", 3),
    Column("weight of t-1, others", "before@other", 3),
    Column("logit lead of <s>, others", "lead@other", 2),
    Column("value norm, <s> / others", "value", 3),
    Column("residual peak, <s> / others", "peak", 2),
    Column("after the last layer", "last", 2),
    Column("without the head, triggers", "head@trigger", 4),
    Column("without the head, others", "head@other", 4),
    Column("head on itself, triggers", "diagonal@trigger", 4),
    Column("value of <s> = 0, others", "value@other", 4),
    Column("MLP at <s> = 0, others", "mlp@other", 4),
  ],
  scales={
    "smoke": Scale(
      "d_model 64, 2,000 steps of 32 rows of 64 characters, 30 symbols, 3 triggers; about two minutes a "
      "row on one core",
      num_seeds=3,
    ),
    "small": Scale(
      "d_model 256, 10,000 steps of 256 rows of 256 characters",
      num_seeds=3,
      overrides={
        "model.d_model": 256,
        "model.mlp.d_ff": 1024,
        "data.seq_len": 256,
        "data.batch_size": 256,
        "optimizer.learning_rate": 3e-4,
        "train.steps": 10_000,
        "train.save_every": 1000,
        "train.keep_every": 1000,
      },
    ),
  },
  measure=measure,
  source="arXiv 2410.13835; figures only, so no column of the paper's",
  claims={
    "other queries look at <s>": lambda t: t["three", START] - 0.5,
    "in one layer too": lambda t: t["one", START] - 0.5,
    "trigger queries look at the token before": lambda t: t["three", BEFORE] - 0.5,
    "the value of <s> is small": lambda t: 1 - t["three", "value norm, <s> / others"],
    "the residual of <s> peaks inside three layers": lambda t: (
      t["three", "residual peak, <s> / others"] - 1.5
    ),
    "ReLU attention has less weight on <s>": lambda t: t["three", START] - t["relu", START],
    "and a smaller peak": lambda t: (
      t["three", "residual peak, <s> / others"] - t["relu", "residual peak, <s> / others"]
    ),
    "SGD has a smaller residual peak": lambda t: (
      t["three", "residual peak, <s> / others"] - t["sgd", "residual peak, <s> / others"]
    ),
    "the head is needed at triggers and idle elsewhere": lambda t: (
      t["three", "without the head, triggers"] - 10 * abs(t["three", "without the head, others"])
    ),
  },
  figure=Figure(
    "start",
    "Weight of <s> at queries that are no trigger",
    "step",
    "attention weight",
    spacing=lambda config: config["train"]["keep_every"],
  ),
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
