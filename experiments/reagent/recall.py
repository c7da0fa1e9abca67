"""ReAGent (arXiv 2402.00794) where the relevant tokens are known: recall of a value by its key.

  python experiments/reagent/recall.py --scale smoke

Rows are attribution methods on one trained model. Precision is against the key, the value and the asked
key; the soft metrics are the paper's, which has no ground truth. Replacements are uniform or by
frequency, where the paper has RoBERTa's. A real checkpoint: `jaxlm convert --from hf FOLDER --to OUT`,
then `jaxlm probe --run OUT --probe attribution --method reagent --text TEXT`.
"""

import time

import numpy as np

from jaxlm.experiments import Column, Measured, Row, Scale, Table
from jaxlm.experiments.readings import opened

CONFIG = "configs/reagent/tiny.py"
PROMPTS = 100


def measure(trained, overrides_at) -> Measured:
  import jax
  import jax.numpy as jnp

  from jaxlm.analysis.attribution import METHODS, Question, metrics
  from jaxlm.analysis.attribution.replacing import unigram
  from jaxlm.data.planted import require_planted

  model, how = opened(trained), dict(trained.settings)
  found = model.data.examples("test", trained.config["seed"], PROMPTS)
  require_planted(found["relevant"], "pair")
  question = Question(model.config, model.params, found["prompt"], found["answer"][:, 0])
  log_p = jax.jit(question.log_probs)(question.params, jnp.asarray(found["prompt"]))
  accuracy = float(np.mean(np.asarray(log_p).argmax(-1) == found["answer"][:, 0]))
  if how.pop("unigram", False):
    counts = np.bincount(found["prompt"].ravel(), minlength=model.config.vocab_size)
    method = METHODS.build(how)
    method = type(method)(**(vars(method) | {"sampler": unigram(counts + 1e-9)}))
  else:
    method = METHODS.build(how)
  key, start = jax.random.key(trained.config["seed"]), time.time()
  chains = method.run(question, key) if how["kind"] == "reagent" else None
  a = chains.importance_BT if chains else np.asarray(method(question, key), np.float64)
  seconds = time.time() - start
  shown = np.abs(a) if method.signed else a
  share = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1e-12)
  soft = metrics.soft(question, share, key)
  numbers = {
    "precision": 100 * float(metrics.precision_at(shown, found["relevant"], 3).mean()),
    "ns": float(soft.normalised_sufficiency.mean()),
    "nc": float(soft.normalised_comprehensiveness.mean()),
    "seconds": seconds,
    "accuracy": 100 * accuracy,
  }
  if how["kind"] in ("integrated_gradients", "gradient_x_input"):
    numbers["gap"] = 100 * metrics.completeness_gap(question, a)
  if chains:
    numbers |= {"passes": chains.passes / PROMPTS, "stopped": float(chains.stopped_B.mean())}
  return Measured(numbers, {}, {})


def row(name, label, **settings) -> Row:
  return Row(name, evaluate_from="reagent", label=label, settings=settings)


ROWS = [
  Row("reagent", CONFIG, label="ReAGent, uniform", settings=dict(kind="reagent")),
  row("reagent_unigram", "ReAGent, unigram", kind="reagent", unigram=True),
  row("gradient", "gradient x input", kind="gradient_x_input"),
  row("ig", "integrated gradients", kind="integrated_gradients", steps=512, decades=24, scan=2048),
  row("ig_even", "the same, 20 even steps", kind="integrated_gradients"),
  row("attention", "last attention", kind="attention"),
  row("rollout", "attention rollout", kind="rollout"),
  row("leave_one_out", "leave one out", kind="leave_one_out"),
  row("random", "random", kind="random"),
]
PRECISION, NC = "precision at 3, %", "soft comprehensiveness, normalised"
ACCURACY = "accuracy of the model, %"


def known(claim):
  """The claim where the model recalls; elsewhere there is nothing to attribute."""

  def judged(t):
    right = t["reagent", ACCURACY]
    return claim(t) if right >= 90 else (None, f"the model recalls {right:.0f} % of the values")

  return judged


def agreement(t):
  """Kendall's tau of the methods' order by the metric and by the truth."""
  from scipy.stats import kendalltau

  truth, metric = ([t[r.name, title] for r in ROWS] for title in (PRECISION, NC))
  return float(kendalltau(truth, metric).statistic)


TABLE = Table(
  name="reagent",
  title="Attribution of a recalled value to its planted tokens",
  rows=ROWS,
  columns=[
    Column(PRECISION, "precision", 1),
    Column("soft sufficiency, normalised", "ns", 3),
    Column(NC, "nc", 3),
    Column("gap of completeness, %", "gap", 2),
    Column("passes per prompt", "passes", 0),
    Column("chains that stopped, of 5", "stopped", 1),
    Column(ACCURACY, "accuracy", 1),
  ],
  scales={
    "smoke": Scale(
      "2 layers of width 64, 2,500 steps of 64 rows of 26 tokens; 100 prompts of 11 tokens; two minutes of training and "
      "half a minute a row on one core",
      num_seeds=3,
    ),
    "small": Scale(
      "4 layers of width 256, 10,000 steps of 256 rows of 50 tokens",
      num_seeds=3,
      overrides={
        "model.d_model": 256,
        "model.num_layers": 4,
        "model.unroll": 4,
        "model.vocab_size": 67,
        "data.num_pairs": 16,
        "data.num_keys": 32,
        "data.num_values": 32,
        "data.batch_size": 256,
        "optimizer.learning_rate": 1e-3,
        "train.steps": 10_000,
      },
    ),
  },
  measure=measure,
  source="arXiv 2402.00794; its numbers are of natural text, where the relevant tokens are not known",
  claims={
    "the model recalls (90 % of the values)": lambda t: t["reagent", ACCURACY] - 90,
    "ReAGent finds more of them than gradient x input": known(
      lambda t: t["reagent", PRECISION] - t["gradient", PRECISION]
    ),
    "and than attention": known(lambda t: t["reagent", PRECISION] - t["attention", PRECISION]),
    "the metric orders methods as the truth does (Kendall's tau above 0)": known(agreement),
  },
)

if __name__ == "__main__":
  raise SystemExit(TABLE.main())
