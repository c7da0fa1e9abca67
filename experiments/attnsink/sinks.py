"""When attention sinks emerge (arXiv 2410.10781): the sink rate under other similarities,
normalisers, biases, masks and optimiser settings.

  python experiments/attnsink/sinks.py --scale smoke

At smoke the data are the Bigram-Backcopy task (arXiv 2410.13835), whose heads have nothing to do at most
queries: a byte model of text of this size and length of training has no sink at the threshold, so nothing
could be compared. The other scales read text.

The metric is the paper's (section 3): the share of heads whose mean weight of the first key is above
0.3, over rows of 64 tokens that all begin with one token. A kernel that is not normalised is divided
by its sum for the metric only. A small model can have no head above the threshold; the mean weight of the
first key, which has none, is beside it. The loss counts positions from 16 on, which a prefix does not reach.
"""

from jaxlm.experiments import Column, Figure, Row, Scale, Table, from_memory
from jaxlm.experiments.readings import sinks

CONFIG = "configs/attnsink/tiny.py"
SIGMOID = {
  "model.mixer.similarity": "sigmoid",
  "model.mixer.normaliser": "none",
  "model.mixer.shift": -4.0,
}


def mixer(**fields) -> dict:
  return {f"model.mixer.{name}": value for name, value in fields.items()}


ROWS = [
  Row("softmax", CONFIG, label="softmax"),
  Row("sigmoid", CONFIG, SIGMOID, label="sigmoid, not normalised"),
  Row("sigmoid_sum", CONFIG, mixer(similarity="sigmoid"), label="sigmoid / sum"),
  Row(
    "elu",
    CONFIG,
    mixer(similarity="elu1", normaliser="none", shift=-4.0),
    label="ELU + 1, not normalised",
  ),
  Row("elu_sum", CONFIG, mixer(similarity="elu1"), label="ELU + 1, / sum"),
  Row(
    "linear",
    CONFIG,
    mixer(similarity="identity", normaliser="count", features="elu1"),
    label="linear, features ELU + 1, / count",
  ),
  Row(
    "mlp",
    CONFIG,
    mixer(similarity="identity", normaliser="count", features="mlp"),
    label="MLP kernel, / count",
  ),
  Row("k_bias", CONFIG, mixer(slot="k"), label="softmax, K bias"),
  Row("kv_bias", CONFIG, mixer(slot="kv"), label="softmax, KV bias"),
  Row("v_bias", CONFIG, mixer(slot="v"), label="softmax, V bias"),
  Row("window", CONFIG, mixer(window=16), label="softmax, window 16"),
  Row(
    "prefix",
    CONFIG,
    mixer(prefix=5) | {"objective.prefix": 5},
    label="softmax, prefix of 5",
  ),
  Row("small_rate", CONFIG, {"optimizer.learning_rate": 3e-4}, label="softmax, rate / 10"),
  Row("no_decay", CONFIG, {"optimizer.weight_decay": 0.0}, label="softmax, no weight decay"),
  Row("decay_1", CONFIG, {"optimizer.weight_decay": 1.0}, label="softmax, weight decay 1"),
  Row("decay_10", CONFIG, {"optimizer.weight_decay": 10.0}, label="softmax, weight decay 10"),
]

SINK, LOSS, FIRST = "sink rate of key 1, %", "loss", "mean weight of key 1"

SCALES = {
  "smoke": Scale(
    "3 layers, d_model 64, 1,500 steps of 32 rows of 64 characters of Bigram-Backcopy; about two minutes a row "
    "on one core",
    num_seeds=3,
    overrides={
      "model.vocab_size": 31,
      "data": dict(kind="backcopy", seq_len=64, batch_size=32),
      "eval.num_tokens": 16_384,
      # As in configs/activedormant: with rotary positions and decay 0.1 no head was a sink after 600 steps.
      "model.position": dict(kind="learned", max_len=256),
      "model.mlp": dict(activation="relu", d_ff=256),
      "optimizer.weight_decay": 1e-4,
    },
  ),
  "small": Scale(
    "6 layers, d_model 256, 10,000 steps of 64 rows of 256 bytes",
    num_seeds=3,
    overrides={
      "model.d_model": 256,
      "model.num_layers": 6,
      "model.unroll": 6,
      "model.mlp.d_ff": 512,
      "data.seq_len": 256,
      "data.batch_size": 64,
      "optimizer.learning_rate": 1e-3,
      "train.steps": 10_000,
      "train.save_every": 1000,
      "train.keep_every": 1000,
    },
  ),
  "paper": Scale(
    "10 layers, d_model 768, 20,000 steps of 256 rows of 2,048 tokens (not run)",
    overrides={
      "model.d_model": 768,
      "model.num_layers": 10,
      "model.unroll": 1,
      "model.mixer.num_heads": 8,
      "model.mlp.d_ff": 1536,
      "data.seq_len": 2048,
      "data.batch_size": 256,
      "optimizer.learning_rate": 4e-4,
      "train.steps": 20_000,
      "train.save_every": 2000,
      "train.keep_every": 2000,
    },
  ),
}

TABLE = Table(
  name="attnsink",
  title="Attention sinks by similarity, normaliser, bias, mask and optimiser",
  rows=ROWS,
  columns=[
    Column(LOSS, "loss", 3),
    Column(SINK, "sink", 1),
    Column(FIRST, "first", 4),
    Column("of the head with the most", "head", 3),
    Column("key of the largest rate (from 0)", "strongest", 0),
    Column("weight of the slot", "slot", 3),
    Column("sinks behind the first key", "intermediate", 2),
    Column("max / median of |x|", "ratio", 0),
  ],
  scales=SCALES,
  measure=sinks(),
  published={
    ("softmax", SINK): from_memory(18.2, "table of normalisation, softmax"),
    ("sigmoid", SINK): from_memory(1.0, "table of normalisation, below this"),
    ("elu", SINK): from_memory(0.8, "table of normalisation"),
  },
  source="arXiv 2410.10781",
  claims={
    "softmax has a sink": lambda t: t["softmax", SINK] - 1.0,
    "without a threshold: softmax gives the first key more weight than the sigmoid": lambda t: (
      t["softmax", FIRST] - t["sigmoid", FIRST]
    ),
    "and a K bias takes weight from it": lambda t: t["softmax", FIRST] - t["k_bias", FIRST],
    "the unnormalised sigmoid has less of one": lambda t: t["softmax", SINK] - t["sigmoid", SINK],
    "at equal loss (within 0.05 nats)": lambda t: (
      0.05 - abs(t["softmax", LOSS] - t["sigmoid", LOSS])
    ),
    "normalisation brings the sink to the sigmoid": lambda t: (
      t["sigmoid_sum", SINK] - t["sigmoid", SINK]
    ),
    "normalisation brings the sink to ELU + 1": lambda t: t["elu_sum", SINK] - t["elu", SINK],
    "a K bias takes the sink from the first key": lambda t: (
      t["softmax", SINK] - t["k_bias", SINK],
      f"weight of the slot {t['k_bias', 'weight of the slot']:.3f}",
    ),
    "a KV bias takes the sink from the first key": lambda t: (
      t["softmax", SINK] - t["kv_bias", SINK]
    ),
    "a V bias does not": lambda t: t["v_bias", SINK] - t["k_bias", SINK],
    "a small learning rate delays the sink": lambda t: t["softmax", SINK] - t["small_rate", SINK],
    "extreme weight decay removes it, with the loss": lambda t: min(
      t["softmax", SINK] - t["decay_10", SINK], t["decay_10", LOSS] - t["softmax", LOSS]
    ),
    "with a window the sink stays at the first token": lambda t: t["window", SINK] - 1.0,
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
